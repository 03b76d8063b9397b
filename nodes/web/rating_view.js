// The pictures of a round, to be marked: all of them in a grid, or two at a time.

import { COLORS, Enlarged, button, panel, tag } from "./elements.js";

export const HEIGHT = 460; // of the widget, at least
const KEYS = { 1: -1, 2: -0.5, 3: 0, 4: 0.5, 5: 1 };
const IDLE = "Run the workflow: the pictures to be rated appear here.";
const SAYS = {
  working: "RLR Train is at work. The next pictures appear here.",
  over: "The training has come to its end; there is nothing left to rate.",
  stopped: "The run was stopped. Your ratings are kept: Run goes on.",
  next: "Thank you. The run goes on with your ratings.",
};

export class RatingView {
  // save(question, marks) stores marks, next(question) hands them to the run; both are asynchronous.
  constructor({ url, save, next }) {
    Object.assign(this, { url, save });
    const { element, head, stage, foot } = panel("rlr-rating", HEIGHT, (key) => this.takeKey(key));
    Object.assign(this, { element, head, stage });
    this.grid = tag("div", { position: "absolute", inset: "0", display: "grid", gap: "6px",
      justifyContent: "center", alignContent: "center" });
    stage.append(this.grid);
    this.help = tag("span", { color: COLORS.quiet, fontSize: "12px", marginRight: "auto" });
    this.enlarged = new Enlarged(element);
    this.large = button("Large", "Show the pictures as large as the page; Escape goes back", () => {
      this.enlarged.toggle();
      this.layOut();
    });
    this.done = button("Next", "Hand these ratings to the run and go on", () => this.finish(next));
    this.done.className = "rlr-next";
    foot.append(this.help, this.large, this.done);
    new ResizeObserver(() => this.layOut()).observe(stage);
    this.show({ state: "idle" });
  }

  show(question) {
    const same = ["state", "run", "round", "mode"].every((name) => this.question?.[name] === question[name]);
    if (same && question.state === "waiting") return; // the clicks here are the newest
    this.question = question;
    this.marks = [...(question.marks ?? [])];
    this.pair = 0;
    while (this.isPairs && this.pair < this.pairs - 1 && this.decided(this.pair)) this.pair++;
    if (question.state !== "waiting") this.enlarged.close();
    this.draw();
  }

  get waiting() {
    return this.question.state === "waiting";
  }

  get isPairs() {
    return this.question.mode === "pairs";
  }

  get pairs() {
    return Math.floor((this.question.pictures?.length ?? 0) / 2);
  }

  decided(pair) {
    return this.marks[2 * pair] != null;
  }

  // The places of the pictures that are shown now.
  get shown() {
    if (!this.waiting) return [];
    if (this.isPairs) return [2 * this.pair, 2 * this.pair + 1];
    return this.question.pictures.map((_, place) => place);
  }

  draw() {
    this.tiles = new Map();
    this.hovered = null;
    this.grid.replaceChildren(...this.shown.map((place) => this.tile(place)));
    for (const control of [this.help, this.large, this.done])
      control.style.visibility = this.waiting ? "visible" : "hidden";
    this.help.textContent = this.isPairs
      ? "click or \u2190 \u2192: the better one \u00b7 \u2193: neither \u00b7 \u2191: back"
      : "click: good, again: bad, again: neither \u00b7 keys 1 to 5: bad to good";
    this.layOut();
    this.refresh();
  }

  tile(place) {
    const frame = tag("div", { position: "relative", borderRadius: "6px", cursor: "pointer",
      border: `4px solid ${COLORS.frame}`, boxSizing: "border-box", overflow: "hidden" });
    frame.className = "rlr-tile";
    frame.dataset.place = place;
    frame.title = this.question.prompts[place];
    const image = tag("img", { width: "100%", height: "100%", objectFit: "contain", display: "block" });
    image.src = this.url(this.question.pictures[place]);
    image.draggable = false;
    const badge = tag("div", { position: "absolute", right: "4px", bottom: "4px", minWidth: "22px",
      height: "22px", borderRadius: "11px", color: "white", fontWeight: "bold", textAlign: "center",
      lineHeight: "22px", padding: "0 4px", boxSizing: "border-box" });
    frame.append(image, badge);
    frame.addEventListener("click", () => (this.isPairs ? this.prefer(place % 2) : this.click(place)));
    frame.addEventListener("mouseenter", () => (this.hovered = place));
    frame.addEventListener("mouseleave", () => (this.hovered = null));
    this.tiles.set(place, { frame, image, badge });
    return frame;
  }

  // As many columns as make the pictures largest.
  layOut() {
    const count = this.shown.length;
    if (!count) return;
    const { clientWidth: wide, clientHeight: high } = this.stage;
    const side = (columns) => Math.min((wide - 6 * (columns - 1)) / columns,
      (high - 6 * (Math.ceil(count / columns) - 1)) / Math.ceil(count / columns));
    let best = 1;
    for (let columns = 2; columns <= count; columns++) if (side(columns) > side(best)) best = columns;
    const pixels = Math.max(24, Math.floor(side(best)));
    this.grid.style.gridTemplateColumns = `repeat(${best}, ${pixels}px)`;
    this.grid.style.gridAutoRows = `${pixels}px`;
    for (const { image } of this.tiles.values())
      image.style.imageRendering = image.naturalWidth && image.naturalWidth < pixels / 2 ? "pixelated" : "auto";
  }

  refresh() {
    for (const [place, { frame, badge }] of this.tiles) {
      const mark = this.marks[place];
      const color = mark > 0 ? COLORS.good : mark < 0 ? COLORS.bad : COLORS.frame;
      frame.style.borderColor = color;
      frame.dataset.mark = mark ?? "";
      badge.style.display = mark == null ? "none" : "block";
      badge.style.background = mark === 0 ? COLORS.quiet : color;
      badge.textContent = { "1": "\u2713", "-1": "\u2717", "0": "\u2013" }[mark] ?? (mark > 0 ? "+" : "\u2212");
    }
    this.head.textContent = this.sentence();
  }

  sentence() {
    if (!this.waiting) return SAYS[this.question.state] ?? IDLE;
    if (this.problem) return this.problem;
    const { round, run, pictures, prompts } = this.question;
    if (!this.isPairs) {
      const marked = this.marks.filter((mark) => mark != null).length;
      return `${run}, round ${round}: ${marked} of ${pictures.length} marked; the others count as neither`;
    }
    const open = Array.from({ length: this.pairs }, (_, pair) => pair).filter((pair) => !this.decided(pair));
    const left = open.length ? `${open.length} left` : "all decided, press Next";
    return `${run}, round ${round}, pair ${this.pair + 1} of ${this.pairs} (${left}): ${prompts[2 * this.pair]}`;
  }

  click(place) {
    const mark = this.marks[place];
    this.mark({ [place]: mark == null ? 1 : mark > 0 ? -1 : null });
  }

  // side: 0 left, 1 right, null neither
  prefer(side) {
    const marks = side === null ? [0, 0] : side ? [-1, 1] : [1, -1];
    this.mark({ [2 * this.pair]: marks[0], [2 * this.pair + 1]: marks[1] });
    if (this.pair < this.pairs - 1) this.pair++;
    this.draw();
  }

  mark(changes) {
    for (const [place, mark] of Object.entries(changes)) this.marks[place] = mark;
    this.refresh();
    this.store();
  }

  // One request at a time, the newest marks last; tried again for as long as the server does not answer.
  async store() {
    this.unsaved = true;
    if (this.storing) return this.storing;
    const question = this.question;
    this.storing = (async () => {
      while (this.unsaved && this.question === question) {
        this.unsaved = false;
        try {
          await this.save(question, this.marks);
          this.problem = "";
        } catch (error) {
          this.unsaved = !error.refused;
          this.problem = error.refused ? error.message : "The server does not answer; your clicks are kept here.";
          this.refresh();
          if (this.unsaved) await new Promise((resolve) => setTimeout(resolve, 1000));
        }
        this.refresh();
      }
    })();
    await this.storing;
    this.storing = null;
  }

  async finish(next) {
    if (!this.waiting || this.finishing) return;
    this.finishing = true;
    const question = this.question;
    try {
      await this.storing;
      await next(question);
      if (this.question === question) this.show({ ...question, state: "next" });
    } catch (error) {
      this.problem = error.message;
      this.refresh();
    }
    this.finishing = false;
  }

  takeKey(key) {
    if (key === "Escape" && this.enlarged.place) {
      this.enlarged.close();
      this.layOut();
      return true;
    }
    if (!this.waiting) return false;
    if (this.isPairs) {
      if (key === "ArrowLeft") this.prefer(0);
      else if (key === "ArrowRight") this.prefer(1);
      else if (key === "ArrowDown") this.prefer(null);
      else if (key === "ArrowUp") {
        this.pair = Math.max(0, this.pair - 1);
        this.draw();
      } else return false;
      return true;
    }
    if (!(key in KEYS) || this.hovered === null) return false;
    this.mark({ [this.hovered]: KEYS[key] });
    return true;
  }
}
