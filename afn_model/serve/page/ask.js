// Questions and answers about the recordings. What a model says is only ever written as text.

import { asks, events } from "./api.js";
import { cues, save, srt } from "./export.js";
import { doubts, placed, playing, same, write } from "./times.js";

const $ = (id) => document.getElementById(id);

function element(kind, className, text = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
}

const atEnd = () => innerHeight + scrollY > document.body.scrollHeight - 80;
const aloud = () => $("aloud").checked && !$("aloud-row").hidden; // browsers keep ticks of another server's page
const toEnd = () => scrollTo({ top: document.body.scrollHeight });

export class Conversation {
  constructor({ recordings, player, speech, model, onError }) {
    Object.assign(this, { recordings, player, speech, model, onError, turns: [], running: null, current: null });
    $("ask").onsubmit = (event) => {
      event.preventDefault();
      this.ask($("question").value.trim());
    };
    $("question").oninput = () => this.grow();
    $("question").onkeydown = (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      $("ask").requestSubmit();
    };
    for (const chip of document.querySelectorAll("[data-ask]")) chip.onclick = () => this.preset(chip.dataset.ask);
    $("stop").onclick = () => this.stop();
    $("fresh").onclick = () => this.clear();
  }

  preset(words) {
    const box = $("question");
    box.value = words;
    this.grow();
    box.focus();
    const gap = words.indexOf("…");
    if (gap >= 0) box.setSelectionRange(gap, gap + 1);
  }

  grow() {
    const box = $("question");
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight + 2, 220)}px`;
  }

  clear() {
    this.stop();
    this.turns = [];
    this.current = null;
    $("turns").replaceChildren();
    $("fresh").hidden = true;
    this.player.mark([]);
  }

  stop() {
    this.running?.abort();
    this.speech.stop();
  }

  // The conversation as the API takes it: a recording is heard in the first turn after it came.
  messages() {
    const system = $("system").value.trim();
    const said = system ? [{ role: "system", content: system }] : [];
    for (const turn of this.turns) {
      const audio = turn.heard.map(({ id }) => ({ type: "audio_url", audio_url: { url: `afn://sha256/${id}` } }));
      said.push({ role: "user", content: [...audio, { type: "text", text: turn.question }] });
      if (turn.answer && turn !== this.turns.at(-1)) said.push({ role: "assistant", content: turn.answer });
    }
    return said;
  }

  body() {
    const body = { messages: this.messages(), temperature: 0, stream: true, stream_options: { include_usage: true } };
    if (this.model()) body.model = this.model();
    if (aloud()) {
      Object.assign(body, { modalities: ["text", "audio"], audio: { voice: "default", format: "pcm16" } });
    }
    // The answer goes on from what an assistant's last message says.
    if ($("think").checked) body.messages.push({ role: "assistant", content: "<think>\n" });
    return body;
  }

  async ask(question) {
    if (!question || this.running) return;
    if (this.recordings.waiting) return this.onError(new Error("A recording is still on its way to the server."));
    if (!this.recordings.ready.length)
      return this.onError(new Error("There is no recording yet: choose, drop or record one."));
    this.onError(null);
    const before = this.turns.flatMap((turn) => turn.heard);
    const heard = this.recordings.ready.filter((item) => !before.includes(item));
    const turn = {
      question,
      heard,
      all: [...before, ...heard],
      about: this.recordings.shown,
      reasoning: "",
      answer: "",
      times: [],
      placed: [],
      links: [],
      state: "",
    };
    this.turns.push(turn);
    this.draw(turn);
    $("question").value = "";
    this.grow();
    this.running = new AbortController();
    if (aloud()) this.speech.begin(turn);
    else this.speech.stop();
    this.busy(turn, true);
    try {
      await this.listen(turn, await asks("/v1/chat/completions", this.body(), this.running.signal));
      this.speech.end(turn);
      if (!turn.answer) turn.state ||= "The model gave no answer.";
    } catch (error) {
      if (this.speech.owner === turn) this.speech.stop();
      if (error.name === "AbortError") turn.state = "Stopped.";
      else this.fail(turn, error);
    }
    this.running = null;
    this.busy(turn, false);
    if (!turn.answer) this.turns = this.turns.filter((other) => other !== turn); // as if it had not been asked
    this.finish(turn);
    return undefined;
  }

  fail(turn, error) {
    turn.state = error.message;
    turn.item.classList.add("failed");
    if (turn.answer) return;
    $("question").value ||= turn.question; // to try again
    this.grow();
  }

  async listen(turn, response) {
    for await (const event of events(response)) {
      const delta = event.choices?.[0]?.delta ?? {};
      const near = atEnd();
      const thought = delta.reasoning ?? delta.reasoning_content;
      if (thought) this.append(turn, "reasoning", thought);
      const said = delta.content || delta.audio?.transcript; // of an answer in sound
      if (said) this.append(turn, "answer", said);
      if (delta.audio?.data) this.speech.push(turn, delta.audio.data);
      if (event.choices?.[0]?.finish_reason === "length") turn.state = "The answer was cut off at its longest.";
      if (event.usage) turn.usage = event.usage;
      if (event.afn?.timestamps) turn.times = event.afn.timestamps;
      if (near) toEnd();
    }
  }

  append(turn, where, text) {
    turn[where] += text;
    turn.parts.thinking.hidden = !turn.reasoning;
    turn.parts[where].append(text);
  }

  draw(turn) {
    turn.item = element("li", "turn");
    const parts = (turn.parts = {
      question: element("p", "question", turn.question),
      thinking: element("details", "thinking"),
      reasoning: element("div", "reasoning"),
      answer: element("div", "answer"),
      foot: element("div", "foot row"),
    });
    parts.question.prepend(element("span", "hidden", "You asked: "));
    parts.thinking.hidden = true;
    parts.thinking.append(element("summary", "", "Thinking"), parts.reasoning);
    turn.item.append(parts.question, parts.thinking, parts.answer, parts.foot);
    $("turns").append(turn.item);
    toEnd(); // the form covers the end of what scrollIntoView would show
  }

  busy(turn, on) {
    turn.item.setAttribute("aria-busy", on);
    turn.item.classList.toggle("busy", on);
    $("send").hidden = on;
    $("stop").hidden = !on;
    $("fresh").hidden = on;
  }

  // Links for times, regions on the waveform, and what can be done with the answer.
  finish(turn) {
    const { parts } = turn;
    const onLink = (link, time) => {
      link.onclick = (event) => {
        event.preventDefault();
        this.pick(turn, time);
      };
      link.onmouseenter = link.onfocus = () => this.light(turn, time);
      link.onmouseleave = link.onblur = () => this.light(turn, null);
    };
    const before = Array.from(turn.reasoning).length;
    const near = atEnd();
    // The server says which recording a time is of where it can tell.
    const times = turn.times.map((time) => ({ ...time, of: turn.all[time.recording] ?? turn.about }));
    const thought = placed(turn.reasoning, times, "think");
    const said = placed(turn.answer, times, "answer", before);
    turn.links = [
      ...write(parts.reasoning, turn.reasoning, thought, onLink),
      ...write(parts.answer, turn.answer, said, onLink),
    ];
    turn.placed = [...said, ...thought];
    const checks = doubts(said);
    if (checks) parts.answer.after(element("p", "checks", checks));
    if (turn.state) parts.foot.append(element("span", "state", turn.state));
    const tokens = turn.usage?.completion_tokens;
    if (turn.usage) parts.foot.append(element("span", "quiet", `${tokens} ${tokens === 1 ? "token" : "tokens"}`));
    const about = said[0]?.of ?? turn.about;
    const name = about.name.replace(/\.\w+$/, "");
    const add = (label, what, run) => {
      const button = element("button", "plain", label);
      button.type = "button";
      button.setAttribute("aria-label", what);
      button.onclick = run;
      parts.foot.append(button);
    };
    if (turn.answer) {
      const lines = said.filter((time) => time.of === about);
      if (!$("aloud-row").hidden) add("Listen", "Listen to the answer", (event) => this.say(turn, event.target));
      if (navigator.clipboard) add("Copy", "Copy the answer", () => navigator.clipboard.writeText(turn.answer));
      if (cues(turn.answer, lines, about.seconds).length) {
        add("Save srt", "Save subtitles, srt", () =>
          save(`${name}.srt`, srt(turn.answer, lines, about.seconds), "text/plain"),
        );
      }
      add("Save json", "Save the conversation, json", () => save(`${name}.json`, this.json(), "application/json"));
    }
    if (near) toEnd();
    if (turn.placed.length || !this.current) this.focus(turn); // else the times before stay in sight
  }

  // Has an answer said; pressed again, the button ends it.
  say(turn, button) {
    if (button.ariaPressed === "true") return this.speech.stop();
    const said = this.speech.say(turn.answer, () => {
      button.textContent = "Listen";
      button.ariaPressed = "false";
    });
    button.textContent = "Stop listening";
    button.ariaPressed = "true";
    return said;
  }

  json() {
    const turns = this.turns.map(({ question, answer, reasoning, times, usage, heard }) => ({
      question,
      answer,
      reasoning,
      timestamps: times,
      usage,
      recordings: heard.map(({ id, name, seconds }) => ({ id, name, seconds })),
    }));
    return `${JSON.stringify({ model: this.model(), turns }, null, 2)}\n`;
  }

  // Times of the answer that is looked at, in the recording that is shown.
  inSight() {
    return (this.current?.placed ?? []).filter((time) => time.of === this.recordings.shown);
  }

  // Which answer's times the waveform shows.
  focus(turn) {
    this.current = turn;
    this.player.mark(this.inSight());
  }

  async pick(turn, time) {
    if (this.recordings.shown !== time.of) this.recordings.show(time.of);
    if (this.current !== turn) this.focus(turn);
    await this.player.ready;
    this.player.play(time.start);
  }

  light(turn, time) {
    if (this.current !== turn && time) this.focus(turn);
    this.player.light(time);
    this.point(time);
  }

  // Marks the link of a time: the one under the pointer on the waveform.
  point(time) {
    for (const [link, other] of this.current?.links ?? [])
      link.classList.toggle("lit", Boolean(time) && same(other, time));
  }

  follow(now) {
    const found = playing(this.inSight(), now);
    for (const [link, time] of this.current?.links ?? []) {
      if (found && same(time, found) && now > 0) link.setAttribute("aria-current", "time");
      else link.removeAttribute("aria-current");
    }
  }
}
