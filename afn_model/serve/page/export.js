// Answers as files.

import { verdict } from "./times.js";

// What is said of each placed time of an answer: what follows it where it begins its line, else the sentence around it.
export function cues(answer, times, seconds) {
  const letters = Array.from(answer);
  const kept = times.filter((time) => verdict(time)[0] !== "wrong");
  const found = kept.map((time, i) => {
    const [from, to] = time.at;
    const before = letters.slice(0, from).join("");
    const after = letters.slice(to, kept[i + 1]?.at[0]).join("");
    const line = before.slice(before.lastIndexOf("\n") + 1);
    let text = after.split("\n\n")[0];
    if (/[\p{L}\p{N}]/u.test(line) || !/[\p{L}\p{N}]/u.test(after)) {
      const rest = letters.slice(to).join("");
      text = line.split(/(?<=[.!?])\s+/).pop() + letters.slice(from, to).join("") + rest.split(/(?<=[.!?])\s|\n/)[0];
    }
    return { start: time.start, end: time.end, text: text.replace(/^[\s\])}:–—-]+|[\s[({]+$/g, "").trim() };
  });
  found.sort((a, b) => a.start - b.start);
  found.forEach((cue, i) => {
    cue.end ??= Math.max(cue.start + 0.5, Math.min(found[i + 1]?.start ?? Infinity, cue.start + 5, seconds));
  });
  return found.filter((cue) => cue.text);
}

export function srt(answer, times, seconds) {
  const stamp = (at) => {
    const ms = Math.round(at * 1000);
    const part = (value, digits) => String(Math.floor(value)).padStart(digits, "0");
    const clock = [part(ms / 3.6e6, 2), part((ms / 6e4) % 60, 2), part((ms / 1000) % 60, 2)].join(":");
    return `${clock},${part(ms % 1000, 3)}`;
  };
  const parts = cues(answer, times, seconds).map(
    (c, i) => `${i + 1}\n${stamp(c.start)} --> ${stamp(c.end)}\n${c.text}\n`,
  );
  return parts.join("\n");
}

export function save(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
