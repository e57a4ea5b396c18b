// The log-mel features of a recording under its waveform: a picture for each 30 seconds, fetched when it is seen.

import { call } from "./api.js";

const WINDOW = 30;
const HEIGHT = 96;
const COLUMNS = [150, 300, 600, 1500, 3000]; // what the server draws, for a whole window

export class Spectrogram {
  constructor(onError) {
    this.shown = false;
    this.onError = onError;
  }

  open(recording, wave) {
    this.tiles?.forEach(({ address }) => address && URL.revokeObjectURL(address));
    Object.assign(this, { recording, wave });
    this.strip = document.createElement("div");
    this.strip.setAttribute("part", "mel");
    Object.assign(this.strip.style, { position: "relative", height: `${HEIGHT}px`, overflow: "hidden" });
    this.tiles = Array.from({ length: Math.ceil(recording.seconds / WINDOW) }, (_, i) => {
      const image = document.createElement("img");
      const left = (100 * i * WINDOW) / recording.seconds;
      const width = (100 * Math.min(WINDOW, recording.seconds - i * WINDOW)) / recording.seconds;
      image.alt = "";
      image.draggable = false;
      Object.assign(image.style, { position: "absolute", left: `${left}%`, width: `${width}%`, height: "100%" });
      this.strip.append(image);
      return { image, columns: 0, address: null };
    });
    wave.on("scroll", () => this.look());
    wave.on("resize", () => this.look());
    this.show(this.shown);
  }

  show(shown) {
    this.shown = shown;
    if (!this.strip) return;
    if (shown) this.wave.getWrapper().querySelector("[part=canvases]").after(this.strip);
    else this.strip.remove();
    this.look();
  }

  // Fetches the pictures that are in sight, as fine as they are shown.
  look() {
    if (!this.shown || !this.strip) return;
    const full = this.wave.getWrapper().clientWidth / this.recording.seconds;
    const [from, width] = [this.wave.getScroll() / full, this.wave.getWidth() / full];
    const pixels = full * WINDOW * devicePixelRatio;
    const columns = COLUMNS.find((count) => count >= pixels) ?? COLUMNS.at(-1);
    const first = Math.max(0, Math.floor(from / WINDOW));
    const last = Math.min(this.tiles.length - 1, Math.floor((from + width) / WINDOW));
    for (let i = first; i <= last; i++) this.fetch(this.tiles[i], i, columns);
  }

  async fetch(tile, i, columns) {
    if (tile.columns >= columns) return;
    tile.columns = columns;
    try {
      const picture = await call(`/v1/audio/${this.recording.id}/mel/${i}.png?columns=${columns}`);
      if (tile.columns !== columns) return;
      if (tile.address) URL.revokeObjectURL(tile.address);
      tile.image.src = tile.address = URL.createObjectURL(await picture.blob());
    } catch (error) {
      tile.columns = 0;
      this.onError(error);
    }
  }
}
