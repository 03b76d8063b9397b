// RLR Method and RLR Reward: only the inputs that the method or reward chosen reads are shown.
//
// Widgets keep their places and values, so that workflows and the API are the same in every version; where this
// script does not run, all of them are shown and those of other choices are ignored.

import { app } from "../../scripts/app.js";
import { ask } from "./answers.js";
import { isOf, rootGraph } from "./graph.js";

let nodes = {}; // type -> { widget: the one that chooses, inputs: { choice: names of its inputs } }
const sockets = new WeakMap(); // node -> sockets without a widget that may come and go: [name, type]

function isLinked(node, name) {
  return node.inputs?.some((input) => input.name === name && input.link != null);
}

function arrange(node) {
  const about = Object.entries(nodes).find(([type]) => isOf(node, type))?.[1];
  const chosen = node.widgets?.find((widget) => widget.name === about?.widget);
  const read = about?.inputs[chosen?.value];
  if (!read || isLinked(node, chosen.name)) return;
  for (const widget of node.widgets) {
    if (widget === chosen) continue;
    const hidden = !read.includes(widget.name) && !isLinked(node, widget.name);
    widget.hidden = hidden; // the canvas asks this
    widget.options.hidden = hidden; // and Vue nodes this,
    if (hidden) widget.computeSize = () => [0, -4]; // old frontends leave a gap otherwise
    else delete widget.computeSize;
  }
  arrangeSockets(node, read, Object.values(about.inputs).flat());
  node.widgets = [...node.widgets]; // when the list is given anew
  node.setSize([node.size[0], node.computeSize()[1]]);
  node.setDirtyCanvas?.(true, true);
}

// Sockets without a widget have no `hidden`: they are taken away and put back.
function arrangeSockets(node, read, known) {
  const own = (node.inputs ?? []).filter((input) => !input.widget && known.includes(input.name));
  const kept = sockets.get(node) ?? own.map((input) => [input.name, input.type]);
  sockets.set(node, kept);
  for (const [name, type] of kept) {
    const place = node.inputs.findIndex((input) => input.name === name);
    if (place < 0 && read.includes(name)) node.addInput(name, type);
    if (place >= 0 && !read.includes(name) && !isLinked(node, name)) node.removeInput(place);
  }
}

function all(graph) {
  return (graph?.nodes ?? []).flatMap((node) => (node.subgraph ? [node, ...all(node.subgraph)] : [node]));
}

function arrangeAll() {
  for (const node of all(rootGraph())) arrange(node);
}

app.registerExtension({
  name: "RLR.ChosenInputs",

  async setup() {
    try {
      nodes = await ask("/rlr/inputs");
      arrangeAll();
    } catch (error) {
      console.warn("RLR: the inputs of methods and rewards could not be asked for", error);
    }
  },

  nodeCreated(node) {
    const type = ["RLR_Method", "RLR_Reward"].find((known) => isOf(node, known));
    if (!type) return;
    const chosen = node.widgets.find((widget) => widget.name === type.slice("RLR_".length).toLowerCase());
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
