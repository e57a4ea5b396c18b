// The list of recordings: files that are chosen or dropped, and what the microphone heard.

import { sentence, upload } from "./api.js";
import { record } from "./record.js";
import { clock } from "./times.js";

const $ = (id) => document.getElementById(id);

export class Recordings {
  constructor({ onShow, onRemove, onRecord, onError }) {
    this.list = [];
    this.shown = null;
    Object.assign(this, { onShow, onRemove, onRecord, onError });
    $("files").onchange = () => {
      this.add([...$("files").files]);
      $("files").value = "";
    };
    $("record").onclick = () => {
      this.onRecord();
      this.record();
    };
    this.dropping();
  }

  dropping() {
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    let inside = 0;
    const mark = () => $("drop").classList.toggle("over", inside > 0);
    document.addEventListener("dragenter", (event) => {
      inside += hasFiles(event) ? 1 : 0;
      mark();
    });
    document.addEventListener("dragleave", (event) => {
      inside -= hasFiles(event) && inside ? 1 : 0;
      mark();
    });
    document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
    document.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      inside = 0;
      mark();
      this.add([...event.dataTransfer.files]);
    });
  }

  add(files) {
    return Promise.all(files.map((file) => this.send(file)));
  }

  async send(file) {
    const item = { name: file.name || "recording", progress: 0 };
    this.list.push(item);
    this.render();
    try {
      const found = await upload(file, (share) => {
        item.progress = share;
        this.row(item)?.querySelector("progress")?.setAttribute("value", share);
      });
      const same = this.list.find((other) => other.id === found.id);
      this.list = this.list.filter((other) => !same || other !== item);
      if (!same) Object.assign(item, found);
      this.show(same ?? item);
      if (found.problems?.length) this.onError(new Error(`${item.name}: ${found.problems.map(sentence).join(" ")}`));
    } catch (error) {
      this.list = this.list.filter((other) => other !== item);
      this.onError(new Error(`${item.name}: ${error.message}`));
    }
    this.render();
  }

  get ready() {
    return this.list.filter((item) => item.id);
  }

  get waiting() {
    return this.list.some((item) => !item.id);
  }

  show(item) {
    this.shown = item ?? null;
    this.render();
    this.onShow(this.shown);
  }

  remove(item) {
    this.list = this.list.filter((other) => other !== item);
    if (this.shown === item) this.show(this.ready.at(-1));
    this.render();
    this.onRemove(item);
  }

  row(item) {
    return $("recordings").children[this.list.indexOf(item)];
  }

  render() {
    const rows = this.list.map((item) => {
      const row = document.createElement("li");
      const name = document.createElement("button");
      const words = document.createElement("span");
      words.textContent = item.name;
      name.type = "button";
      name.className = "name";
      name.append(words);
      name.disabled = !item.id;
      name.onclick = () => this.show(item);
      row.append(name);
      if (item.id) {
        const length = document.createElement("span");
        length.className = "quiet";
        length.textContent = clock(item.seconds);
        name.append(length);
        name.setAttribute("aria-current", String(item === this.shown));
        const remove = document.createElement("button");
        Object.assign(remove, {
          type: "button",
          className: "plain",
          textContent: "×",
          onclick: () => this.remove(item),
        });
        remove.setAttribute("aria-label", `Remove ${item.name}`);
        row.append(remove);
      } else {
        const progress = document.createElement("progress");
        progress.value = item.progress;
        progress.setAttribute("aria-label", `Sending ${item.name}`);
        row.append(progress);
      }
      return row;
    });
    $("question").placeholder = `Ask about the ${this.ready.length > 1 ? `${this.ready.length} recordings` : "recording"}`;
    const focused = [...$("recordings").children].findIndex((row) => row.contains(document.activeElement));
    $("recordings").replaceChildren(...rows);
    if (focused >= 0) (rows[Math.min(focused, rows.length - 1)]?.querySelector(".name") ?? $("record")).focus();
    $("drop").classList.toggle("some", this.list.length > 0);
  }

  async record() {
    $("record").disabled = true;
    let stop;
    try {
      stop = await record((peak, seconds) => {
        const level = Math.max(0, Math.min(100, Math.round(100 + (20 * Math.log10(peak + 1e-6) * 100) / 50))); // 50 dB
        $("level").setAttribute("aria-valuenow", level);
        $("level").firstElementChild.style.transform = `scaleX(${level / 100})`;
        $("recorded").textContent = clock(seconds);
      });
    } catch (error) {
      $("record").disabled = false;
      return this.onError(error);
    }
    $("recorder").hidden = false;
    $("record-stop").focus();
    const end = async (use) => {
      $("record-stop").onclick = $("record-discard").onclick = null;
      const file = await stop();
      $("recorder").hidden = true;
      $("record").disabled = false;
      $("recorded").textContent = "0:00";
      $("record").focus();
      const now = new Date().toTimeString().slice(0, 5).replace(":", ".");
      if (use) await this.add([new File([file], `Recorded at ${now}.wav`, { type: "audio/wav" })]);
    };
    $("record-stop").onclick = () => end(true);
    $("record-discard").onclick = () => end(false);
    return undefined;
  }
}
