// What a node says when it is done, in the node: the report, the path of a file, scores under their pictures.

import { app } from "../../scripts/app.js";
import { COLORS, tag } from "./elements.js";
import { addView, isOf } from "./graph.js";

const HEIGHTS = { RLR_TrainingReport: 150, RLR_SaveLoRA: 56, RLR_ScoreImages: 220 };
const PICTURE = /^data:image\/jpeg;base64,/;

function box() {
  const element = tag("div", {
    width: "100%", height: "100%", boxSizing: "border-box", padding: "6px 8px", overflow: "auto",
    borderRadius: "6px", background: COLORS.ground, color: COLORS.text, font: "12px/1.4 sans-serif",
    whiteSpace: "pre-wrap", overflowWrap: "anywhere", userSelect: "text",
  });
  element.className = "rlr-text";
  // the wheel is for the text where there is more of it than is seen
  element.addEventListener("wheel", (event) => {
    if (element.scrollHeight > element.clientHeight) event.stopPropagation();
  });
  return element;
}

function scored({ image, text }) {
  const figure = tag("figure", { margin: "0", width: "88px", textAlign: "center" });
  const picture = tag("img", { width: "88px", height: "88px", objectFit: "contain", display: "block" });
  if (PICTURE.test(image)) picture.src = image;
  figure.append(picture, tag("figcaption", { fontSize: "11px" }, text));
  return figure;
}

function fill(element, output) {
  const pictures = tag("div", { display: "flex", flexWrap: "wrap", gap: "6px" });
  pictures.append(...(output.rlr_scores ?? []).map(scored));
  const text = tag("div", { paddingTop: output.rlr_scores ? "6px" : "0" }, output.text.join("\n"));
  element.replaceChildren(pictures, text);
}

app.registerExtension({
  name: "RLR.Texts",

  nodeCreated(node) {
    const type = Object.keys(HEIGHTS).find((name) => isOf(node, name));
    if (!type) return;
    const element = box();
    const idle = { text: ["Run the workflow: the result appears here."] };
    fill(element, idle);
    addView(node, "rlr_text", element, HEIGHTS[type], 300);
    const earlier = node.onExecuted;
    node.onExecuted = function (output) {
      earlier?.apply(this, arguments);
      fill(element, output?.text ? output : idle);
    };
  },
});
