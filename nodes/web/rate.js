// RLR Rate: what the runs ask, in the node that asks it. How it looks is in rating_view.js.
//
// A click is stored on the server as soon as it is made; the server finds all of it on its disk again.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { ask, pictureUrl, send } from "./answers.js";
import { addView, isOf, nodeOf } from "./graph.js";
import { HEIGHT, RatingView } from "./rating_view.js";

const views = new WeakMap(); // node -> RatingView

function show(question) {
  const node = nodeOf(question);
  if (node) views.get(node)?.show(question);
}

async function catchUp() {
  try {
    for (const question of (await ask("/rlr/questions")).questions) show(question);
  } catch (error) {
    console.warn("RLR: the pictures to be rated could not be asked for", error);
  }
}

app.registerExtension({
  name: "RLR.Rate",

  async setup() {
    api.addEventListener("rlr.rate", (event) => show(event.detail));
    api.addEventListener("reconnected", catchUp);
    await catchUp();
  },

  nodeCreated(node) {
    if (!isOf(node, "RLR_Rate")) return;
    const view = new RatingView({
      url: pictureUrl,
      save: ({ run, round }, marks) => send("/rlr/questions/marks", { run, number: round, marks }),
      async next({ run, round }) {
        await send("/rlr/questions/next", { run, number: round });
        await app.queuePrompt(0, 1);
      },
    });
    views.set(node, view);
    addView(node, "rlr_rating", view.element, HEIGHT, 560);
  },

  afterConfigureGraph: catchUp, // the clicks since are on the server
});
