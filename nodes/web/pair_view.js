// Two pictures, of which the better one is to be chosen, pair after pair.

import { COLORS, Enlarged, button, panel, tag } from "./elements.js";

export const HEIGHT = 320; // of the widget, at least
const IDLE = "Run the workflow: its pairs appear here.";

export class PairView {
  // choose(collection, pair, choice) stores a choice: "left", "right", "skip", or "" to take one back.
  constructor({ url, choose, more }) {
    Object.assign(this, { url, choose });
    const { element, head, stage, foot } = panel("rlr-pairs", HEIGHT, (key) => this.takeKey(key));
    Object.assign(this, { element, head });
    this.row = tag("div", { position: "absolute", inset: "0", display: "flex", gap: "8px" });
    stage.append(this.row);
    this.help = tag("span", { color: COLORS.quiet, fontSize: "12px", marginRight: "auto" },
      "click or \u2190 \u2192: the better one \u00b7 \u2193: neither \u00b7 \u2191: back");
    this.enlarged = new Enlarged(element);
    this.large = button("Large", "As large as the page; Escape goes back", () => this.enlarged.toggle());
    this.more = button("More", "Run the workflow again: writes the file and brings new pairs", more);
    this.more.className = "rlr-more";
    foot.append(this.help, this.large, this.more);
    this.show({ pairs: [], decided: 0 });
  }

  show(question) {
    this.question = question;
    this.open = [...question.pairs];
    this.made = []; // choices of this page, newest last
    this.problem = "";
    this.draw();
  }

  draw() {
    const pair = this.open[0];
    this.row.replaceChildren(...(pair ? [this.picture(pair, 0), this.picture(pair, 1)] : []));
    this.help.style.visibility = this.large.style.visibility = pair || this.made.length ? "visible" : "hidden";
    const decided = this.question.decided + this.made.length;
    if (!pair) this.enlarged.close();
    this.head.textContent = this.problem || (pair ? `${this.open.length} to go, ${decided} decided: ${pair.prompt}`
      : decided ? `All ${decided} pairs are decided. More writes the file and goes on.` : IDLE);
  }

  picture(pair, side) {
    const frame = tag("div", { flex: "1 1 0", minWidth: "0", cursor: "pointer", borderRadius: "6px",
      border: `2px solid ${COLORS.frame}`, boxSizing: "border-box", overflow: "hidden" });
    frame.className = "rlr-side";
    const image = tag("img", { width: "100%", height: "100%", objectFit: "contain", display: "block" });
    image.src = this.url(pair.pictures[side]);
    image.draggable = false;
    frame.append(image);
    frame.addEventListener("click", () => this.take(side ? "right" : "left"));
    return frame;
  }

  async take(choice) {
    const pair = this.open.shift();
    if (!pair) return;
    this.made.push(pair);
    await this.store(pair, choice);
  }

  async back() {
    const pair = this.made.pop();
    if (!pair) return;
    this.open.unshift(pair);
    await this.store(pair, "");
  }

  async store(pair, choice) {
    this.problem = "";
    this.draw();
    try {
      await this.choose(this.question.name, pair.name, choice);
    } catch (error) {
      const list = choice ? this.made : this.open; // it is as it was
      list.splice(list.indexOf(pair), 1);
      if (choice) this.open.unshift(pair);
      else this.made.push(pair);
      this.problem = `This choice could not be stored: ${error.message}`;
      this.draw();
    }
  }

  takeKey(key) {
    const choice = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "skip" }[key];
    if (key === "Escape" && this.enlarged.place) this.enlarged.close();
    else if (key === "ArrowUp") this.back();
    else if (choice && this.open.length) this.take(choice);
    else return false;
    return true;
  }
}
