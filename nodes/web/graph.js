// Where the nodes are that the server speaks of.

import { app } from "../../scripts/app.js";

export function rootGraph() {
  return app.rootGraph ?? app.graph;
}

// The node of an execution id, "7:3" for node 3 inside subgraph 7. Ids inside subgraphs are numbers or strings,
// depending on the version.
export function nodeAt(executionId) {
  let graph = rootGraph();
  let node = null;
  for (const part of String(executionId).split(":")) {
    if (!graph) return null;
    node = graph.getNodeById(Number(part)) ?? graph.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}

// The node that the server's news is about; null where that is another workflow's node of this number. Pages
// queue a run with their workflow's id; one that comes without, over the API, is in no page's node.
export function nodeOf(news) {
  return news.workflow && news.workflow === rootGraph()?.id ? nodeAt(news.node) : null;
}

export function isOf(node, type) {
  return (node.comfyClass ?? node.type) === type;
}

// A widget of one's own that fills what is left of the node, at least `height` high.
export function addView(node, name, element, height, width) {
  const widget = node.addDOMWidget(name, name, element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => height,
  });
  widget.serialize = false;
  if (node.size[0] < width) node.setSize([width, node.size[1]]);
}
