// RLR Method: only the settings that the chosen method reads are shown.
//
// They keep their places and values, so that workflows and the API are the same in every version; where this
// script does not run, all of them are shown and those of other methods are ignored.

import { app } from "../../scripts/app.js";
import { ask } from "./answers.js";
import { isOf } from "./graph.js";

let inputsOf = {}; // method -> the names of its inputs

function isLinked(node, widget) {
  return node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null);
}

function arrange(node) {
  const chosen = node.widgets?.find((widget) => widget.name === "method");
  const read = inputsOf[chosen?.value];
  if (!read || isLinked(node, chosen)) return;
  for (const widget of node.widgets) {
    if (widget === chosen) continue;
    const hidden = !read.includes(widget.name) && !isLinked(node, widget);
    widget.hidden = hidden; // the canvas asks this
    widget.options.hidden = hidden; // and Vue nodes this,
    if (hidden) widget.computeSize = () => [0, -4]; // old frontends leave a gap otherwise
    else delete widget.computeSize;
  }
  node.widgets = [...node.widgets]; // when the list is given anew
  node.setSize([node.size[0], node.computeSize()[1]]);
  node.setDirtyCanvas?.(true, true);
}

function all(graph) {
  return (graph?.nodes ?? []).flatMap((node) => (node.subgraph ? [node, ...all(node.subgraph)] : [node]));
}

function arrangeAll() {
  for (const node of all(app.rootGraph ?? app.graph)) if (isOf(node, "RLR_Method")) arrange(node);
}

app.registerExtension({
  name: "RLR.Method",

  async setup() {
    try {
      inputsOf = (await ask("/rlr/methods")).methods;
      arrangeAll();
    } catch (error) {
      console.warn("RLR: the settings of the methods could not be asked for", error);
    }
  },

  nodeCreated(node) {
    if (!isOf(node, "RLR_Method")) return;
    const chosen = node.widgets.find((widget) => widget.name === "method");
    const earlier = chosen.callback;
    chosen.callback = function (...values) {
      const result = earlier?.apply(this, values);
      arrange(node);
      return result;
    };
    setTimeout(() => arrange(node)); // once its values are in place
  },

  afterConfigureGraph: arrangeAll,
});
