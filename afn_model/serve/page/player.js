// The recording that is shown: waveform, timeline, spectrogram, regions and playback. Nothing is decoded here: the
// outline and the pictures come from the server, and <audio> plays its WAV in parts.

import { call, key } from "./api.js";
import { Spectrogram } from "./spectrogram.js";
import { clock, same, verdict } from "./times.js";
import Hover from "./vendor/hover.js";
import Regions from "./vendor/regions.js";
import Timeline from "./vendor/timeline.js";
import WaveSurfer from "./vendor/wavesurfer.js";

const HEIGHT = 112; // page_routes.py has the hash of the style element that this gives
const CLOSEST = 120; // pixels per second
const $ = (id) => document.getElementById(id);
const resolved = (name) => {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
};

const interval = (pixels) => {
  const wanted = 70 / pixels; // seconds between two labels
  return [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800].find((step) => step >= wanted) ?? 3600;
};

export class Player {
  constructor({ onTime, onHover, onError }) {
    this.recording = this.wave = this.blob = null;
    this.times = [];
    Object.assign(this, { onTime, onHover, onError });
    this.audio = $("audio");
    $("play").onclick = () => this.toggle();
    $("speed").onchange = () => this.setSpeed(Number($("speed").value));
    $("zoom").oninput = () => this.zoom();
    $("seek").oninput = () => this.seek(Number($("seek").value));
    $("mel").onchange = () => this.pictures.show($("mel").checked);
    this.audio.onplay = this.audio.onpause = () => ($("play").textContent = this.audio.paused ? "Play" : "Pause");
    this.audio.onerror = () => this.audio.getAttribute("src") && onError(new Error("The recording cannot be played."));
    this.audio.ontimeupdate = () => this.moved();
    this.audio.onseeked = () => this.moved();
    this.pictures = new Spectrogram(onError);
  }

  async show(recording) {
    if (recording === this.recording) return;
    this.audio.pause();
    this.recording = recording;
    this.wave?.destroy();
    this.wave = null;
    if (this.blob) URL.revokeObjectURL(this.blob);
    this.blob = null;
    $("player").hidden = !recording;
    if (!recording) return this.audio.removeAttribute("src");
    const address = `/v1/audio/${recording.id}`;
    const n = Math.max(200, Math.min(60_000, Math.ceil(recording.seconds * 100)));
    const outline = call(`${address}/peaks?n=${n}`).then((response) => response.json());
    // <audio> sends no key
    const whole = key.get() && call(`${address}/content`).then((response) => response.blob());
    const [found, blob] = await Promise.all([outline, whole]);
    const source = blob ? URL.createObjectURL(blob) : `${address}/content`;
    if (this.recording !== recording) return source.startsWith("blob:") && URL.revokeObjectURL(source);
    this.blob = source.startsWith("blob:") ? source : null;
    const bytes = Uint8Array.from(atob(found.peaks), (letter) => letter.charCodeAt(0));
    return this.draw(source, bytes);
  }

  draw(source, bytes) {
    const pairs = new Int8Array(bytes.buffer);
    const outline = [1, 0].map((side) =>
      Float32Array.from({ length: pairs.length / 2 }, (_, i) => pairs[2 * i + side] / 127),
    );
    const { seconds } = this.recording;
    this.regions = Regions.create();
    this.wave = WaveSurfer.create({
      container: "#wave",
      height: HEIGHT,
      media: this.audio,
      url: source,
      peaks: outline,
      duration: seconds,
      normalize: true,
      cursorWidth: 2,
      dragToSeek: true,
      ...this.colours(),
      plugins: [this.regions],
    });
    this.wave.on("error", () => {}); // the audio element tells
    const ready = new Promise((resolve) => this.wave.once("ready", resolve)); // <audio> has its source by then
    this.wave.on("ready", () => {
      this.fit = this.wave.getWidth() / seconds;
      this.pictures.open(this.recording, this.wave);
      this.mark(this.times);
    });
    this.wave.registerPlugin(
      Hover.create({
        lineColor: resolved("--quiet"),
        labelBackground: resolved("--ink"),
        labelColor: resolved("--paper"),
        labelSize: 12,
        formatTimeCallback: (at) => clock(at, 1),
      }),
    );
    this.regions.on("region-clicked", (region, event) => {
      event.stopPropagation();
      this.play(this.timeOf(region).start);
    });
    for (const [happens, entered] of [
      ["over", true],
      ["leave", false],
    ]) {
      this.regions.on("region-created", (region) =>
        region.on(happens, () => {
          this.onHover(entered ? this.timeOf(region) : null);
        }),
      );
    }
    $("zoom").value = 0;
    this.setSpeed(Number($("speed").value));
    $("length").textContent = clock(seconds);
    $("seek").max = seconds;
    this.timeline(this.wave.getWidth() / seconds);
    this.moved();
    return ready;
  }

  colours() {
    return {
      waveColor: resolved("--wave"),
      progressColor: resolved("--wave-played"),
      cursorColor: resolved("--accent"),
    };
  }

  repaint() {
    this.wave?.setOptions(this.colours());
  }

  timeline(pixels) {
    if (this.ruler) this.wave.unregisterPlugin(this.ruler);
    const step = interval(pixels);
    this.ruler = Timeline.create({
      height: 18,
      timeInterval: step / 5,
      primaryLabelInterval: step,
      secondaryLabelInterval: 0,
      formatTimeCallback: (at) => clock(at, step < 1 ? 1 : 0),
      style: { fontSize: "11px", color: "var(--quiet)" },
    });
    this.wave.registerPlugin(this.ruler);
  }

  zoom() {
    if (!this.wave) return;
    const closest = Math.max(CLOSEST, 4 * this.fit);
    const pixels = this.fit * (closest / this.fit) ** ($("zoom").value / 100);
    this.wave.zoom(pixels);
    this.timeline(pixels);
    this.pictures.look();
  }

  // Regions for the times of an answer; those without an end are lines.
  mark(times) {
    this.times = times;
    if (!this.wave?.getDuration()) return;
    this.regions.clearRegions();
    times.forEach((time, i) => {
      if (times.findIndex((other) => same(time, other)) < i) return;
      const end = time.end > time.start ? { end: time.end } : {};
      this.regions.addRegion({
        id: `t${i} ${verdict(time)[0]}`,
        start: time.start,
        ...end,
        drag: false,
        resize: false,
      });
    });
  }

  timeOf(region) {
    return this.times[parseInt(region.id.slice(1), 10)];
  }

  light(time) {
    for (const region of this.regions?.getRegions() ?? []) {
      const lit = time && same(this.timeOf(region), time);
      region.element?.part.toggle("lit", Boolean(lit));
    }
  }

  moved() {
    const at = this.audio.currentTime;
    $("now").textContent = clock(at);
    $("seek").value = at;
    $("seek").setAttribute("aria-valuetext", clock(at));
    this.onTime(at);
  }

  seek(seconds) {
    if (this.recording) this.audio.currentTime = Math.max(0, Math.min(this.recording.seconds, seconds));
  }

  skip(seconds) {
    this.seek(this.audio.currentTime + seconds);
  }

  play(from) {
    if (!this.wave) return;
    if (from !== undefined) this.seek(from);
    this.audio
      .play()
      .catch((error) => error.name !== "AbortError" && this.onError(new Error("The recording cannot be played.")));
  }

  toggle() {
    return this.audio.paused ? this.play() : this.audio.pause();
  }

  setSpeed(rate) {
    this.audio.playbackRate = rate;
  }

  faster(step) {
    const speed = $("speed");
    speed.selectedIndex = Math.max(0, Math.min(speed.length - 1, speed.selectedIndex + step));
    this.setSpeed(Number(speed.value));
  }
}
