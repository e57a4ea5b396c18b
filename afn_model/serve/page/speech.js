// What the server says, played while it comes: 16-bit samples of 24 kHz.

import { asks, events } from "./api.js";

const RATE = 24_000;
const LEAD = 0.15; // seconds before the first piece is heard: the next one may be late

export class Speech {
  constructor({ onError }) {
    Object.assign(this, { onError, owner: null, onStop: null, context: null, sources: new Set(), at: 0 });
  }

  // What belongs to an owner is played from now on, and nothing else; onStop is called when it is no longer.
  begin(owner, onStop) {
    this.stop();
    this.context ??= new AudioContext();
    this.context.resume();
    Object.assign(this, { owner, onStop, over: false, at: 0 });
  }

  // The next samples, in base64.
  push(owner, data) {
    if (owner !== this.owner) return;
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const pcm = new Int16Array(bytes.buffer, 0, bytes.length >> 1);
    if (!pcm.length) return;
    const buffer = this.context.createBuffer(1, pcm.length, RATE);
    buffer.getChannelData(0).set(Float32Array.from(pcm, (x) => x / 32768));
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    source.onended = () => {
      this.sources.delete(source);
      if (this.over && !this.sources.size) this.stop();
    };
    const now = this.context.currentTime;
    this.at = this.at > now ? this.at : now + LEAD;
    source.start(this.at);
    this.at += buffer.duration;
    this.sources.add(source);
  }

  // No more comes: it ends when what is there has been played.
  end(owner) {
    if (owner !== this.owner) return;
    this.over = true;
    if (!this.sources.size) this.stop();
  }

  // Somebody speaks, asks or does not want to hear it.
  stop() {
    for (const source of this.sources) {
      source.onended = null;
      source.stop();
    }
    this.sources.clear();
    const { onStop } = this;
    this.owner = this.onStop = null;
    onStop?.();
  }

  // Has a text said.
  async say(text, onStop) {
    const asking = new AbortController();
    this.begin(asking, () => {
      asking.abort();
      onStop();
    });
    const body = { input: text, voice: "default", response_format: "pcm", stream_format: "sse" };
    try {
      for await (const event of events(await asks("/v1/audio/speech", body, asking.signal))) {
        if (event.audio) this.push(asking, event.audio);
      }
      this.end(asking);
    } catch (error) {
      if (this.owner === asking) this.stop();
      if (error.name !== "AbortError") this.onError(error);
    }
  }
}
