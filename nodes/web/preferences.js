// RLR Preferences: the pairs that are not decided yet, in the node that collects them.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { ask, pictureUrl, send } from "./answers.js";
import { addView, isOf, nodeOf } from "./graph.js";
import { HEIGHT, PairView } from "./pair_view.js";

const views = new WeakMap(); // node -> PairView

function show(question) {
  const node = nodeOf(question);
  if (node) views.get(node)?.show(question);
}

async function catchUp() {
  try {
    for (const question of (await ask("/rlr/pairs")).questions) show(question);
  } catch (error) {
    console.warn("RLR: the pairs could not be asked for", error);
  }
}

app.registerExtension({
  name: "RLR.Preferences",

  async setup() {
    api.addEventListener("rlr.pairs", (event) => show(event.detail));
    await catchUp();
  },

  nodeCreated(node) {
    if (!isOf(node, "RLR_Preferences")) return;
    const view = new PairView({
      url: pictureUrl,
      choose: (name, pair, choice) => send("/rlr/pairs/choose", { name, pair, choice }),
      more: () => app.queuePrompt(0, 1),
    });
    views.set(node, view);
    addView(node, "rlr_pairs", view.element, HEIGHT, 480);
  },

  afterConfigureGraph: catchUp, // the choices since are on the server
});
