// In the thread of audio: samples of the microphone as 16-bit integers, a tenth of a second at a time.

class Tap extends AudioWorkletProcessor {
  constructor() {
    super();
    this.pcm = new Int16Array(Math.round(sampleRate / 10));
    this.n = this.peak = 0;
  }

  process([[channel]]) {
    for (const x of channel ?? []) {
      this.peak = Math.max(this.peak, Math.abs(x));
      this.pcm[this.n++] = Math.max(-1, Math.min(1, x)) * 32767;
      if (this.n === this.pcm.length) {
        this.port.postMessage({ pcm: this.pcm.slice(), peak: this.peak });
        this.n = this.peak = 0;
      }
    }
    return true;
  }
}

registerProcessor("tap", Tap);
