// The live view of RLR Train: which node shows what. How it looks is in view.js.
//
// The server sends a run's news under the execution id of its node ("7:3" for node 3 inside subgraph 7) and
// keeps all that a view shows, so that a page that is loaded again catches up. Everything here is an extra:
// progress bar, preview and final pictures work without it.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { isOf, nodeOf } from "./graph.js";
import { View, HEIGHT } from "./view.js";

const NODE = "RLR_Train";
const states = new Map(); // execution id -> what its view shows
const views = new WeakMap(); // node -> View

// The pictures of the finished run, and not the last preview, which would otherwise stay in front of them.
// Vue nodes draw from the page's store, the canvas from app.
function dropPreview(node, executionId) {
  const pinia = document.getElementById("vue-app")?.__vue_app__?.config.globalProperties.$pinia;
  const shown = [app.nodePreviewImages, pinia?.state.value.nodeOutput?.nodePreviewImages];
  for (const previews of shown.filter(Boolean))
    for (const key of [executionId, String(node.id), `${node.graph?.id}:${node.id}`]) delete previews[key];
  node.preview = node.images = undefined;
  node.setDirtyCanvas?.(true, true);
}

function show(state) {
  const node = nodeOf(state);
  if (node) views.get(node)?.show(state);
}

function take(news) {
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
    const answer = await api.fetchApi("/rlr/runs");
    for (const state of (await answer.json()).runs) states.set(state.node, state);
    for (const state of states.values()) show(state);
  } catch (error) {
    console.warn("RLR: the live view could not be restored", error);
  }
}

app.registerExtension({
  name: "RLR.LiveView",

  async setup() {
    api.addEventListener("rlr.live", (event) => take(event.detail));
    await catchUp();
  },

  nodeCreated(node) {
    if (!isOf(node, NODE)) return;
    const view = new View();
    const widget = node.addDOMWidget("rlr_live_view", "rlr_live_view", view.element, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => HEIGHT,
      getMaxHeight: () => HEIGHT,
    });
    widget.serialize = false;
    views.set(node, view);
    const earlier = node.onExecuted;
    node.onExecuted = function (output) {
      earlier?.apply(this, arguments);
      const state = output?.rlr?.[0];
      if (state) {
        states.set(state.node, state);
        view.show(state);
        dropPreview(node, state.node);
      }
    };
    const wide = 420;
    if (node.size[0] < wide) node.setSize([wide, node.size[1]]);
  },

  afterConfigureGraph() {
    for (const state of states.values()) show(state);
  },
});
