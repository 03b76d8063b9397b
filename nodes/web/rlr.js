// The live view of RLR Train: which node shows what. How it looks is in view.js.
//
// The server sends a run's news under the execution id of its node ("7:3" for node 3 inside subgraph 7) and
// keeps all that a view shows, so that a page that is loaded again catches up. Everything here is an extra:
// the progress bar works without it, and the server sends previews to pages that do not ask for the runs.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { ask } from "./answers.js";
import { addView, isOf, nodeOf } from "./graph.js";
import { View, HEIGHT } from "./view.js";

const NODE = "RLR_Train";
const states = new Map(); // execution id -> what its view shows
const views = new WeakMap(); // node -> View

function show(state) {
  const node = nodeOf(state);
  if (node) views.get(node)?.show(state);
}

function take(news) {
  if (!nodeOf(news)) return; // of another workflow, or of a run that no page has queued
  const known = states.get(news.node);
  if (news.points) {
    states.set(news.node, news); // the whole state
  } else if (!known || known.run !== news.run) {
    return catchUp();
  } else {
    const { point, sample, ...rest } = news;
    Object.assign(known, rest);
    if (point) known.points = [...known.points.filter((p) => p.step < point.step), point];
    if (sample) known.samples = [...known.samples.filter((s) => s.step < sample.step), sample];
  }
  show(states.get(news.node));
}

async function catchUp() {
  try {
    const { runs } = await ask(`/rlr/runs?client=${encodeURIComponent(api.clientId ?? "")}`);
    for (const state of runs) if (nodeOf(state)) states.set(state.node, state);
    for (const state of states.values()) show(state);
  } catch (error) {
    console.warn("RLR: the live view could not be restored", error);
  }
}

app.registerExtension({
  name: "RLR.LiveView",

  async setup() {
    api.addEventListener("rlr.live", (event) => take(event.detail));
    api.addEventListener("execution_start", catchUp); // by now the page knows its client's id
    await catchUp();
  },

  nodeCreated(node) {
    if (!isOf(node, NODE)) return;
    const view = new View();
    addView(node, "rlr_live_view", view.element, HEIGHT, 420);
    views.set(node, view);
    const earlier = node.onExecuted;
    node.onExecuted = function (output) {
      earlier?.apply(this, arguments);
      const state = output?.rlr?.[0];
      if (state) {
        states.set(state.node, state);
        view.show(state);
      }
    };
  },

  async afterConfigureGraph() {
    states.clear(); // node numbers are another workflow's now
    await catchUp();
  },
});
