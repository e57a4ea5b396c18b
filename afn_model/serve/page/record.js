// The microphone, as a WAV file of 16-bit samples.

export async function record(onLevel) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("The browser lends its microphone only to pages on this machine or over https.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  } catch (error) {
    const refused = error.name === "NotAllowedError";
    throw new Error(refused ? "The browser was not allowed to use the microphone." : "There is no microphone to use.");
  }
  let context, source;
  try {
    context = new AudioContext({ sampleRate: 16_000 });
    source = context.createMediaStreamSource(stream);
  } catch {
    context = new AudioContext(); // Firefox: only the rate of the microphone
    source = context.createMediaStreamSource(stream);
  }
  await context.audioWorklet.addModule("/page/worklet.js");
  const tap = new AudioWorkletNode(context, "tap", { numberOfOutputs: 0 });
  const parts = [];
  let samples = 0;
  tap.port.onmessage = ({ data }) => {
    parts.push(data.pcm);
    samples += data.pcm.length;
    onLevel(data.peak, samples / context.sampleRate);
  };
  source.connect(tap);
  return async () => {
    stream.getTracks().forEach((track) => track.stop());
    source.disconnect();
    await context.close();
    return wav(parts, samples, context.sampleRate);
  };
}

export function wav(parts, samples, rate) {
  const header = new DataView(new ArrayBuffer(44));
  const word = (at, text) => [...text].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
  word(0, "RIFF");
  header.setUint32(4, 36 + 2 * samples, true);
  word(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // one channel
  header.setUint32(24, rate, true);
  header.setUint32(28, 2 * rate, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  word(36, "data");
  header.setUint32(40, 2 * samples, true);
  return new Blob([header, ...parts], { type: "audio/wav" });
}
