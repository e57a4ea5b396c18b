// Times that an answer states: how they are written, what the server's checks say, and where they stand in the text.

const CHECKS = {
  past_end: ["wrong", "it lies past the end of the recording"],
  reversed: ["wrong", "it ends before it begins"],
  order: ["doubt", "it goes back behind the time before it"],
  silent: ["doubt", "nothing is heard there"],
  rate: ["doubt", "more is said than fits into so short a time"],
  grid: ["doubt", "it may only be the edge of a 30-second window"],
  ambiguous: ["doubt", "it may mean another moment"],
};

export function clock(seconds, decimals = 0) {
  const units = Math.floor(Math.max(0, seconds) * 10 ** decimals + 1e-6);
  const whole = Math.floor(units / 10 ** decimals);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const fraction = decimals ? `.${String(units % 10 ** decimals).padStart(decimals, "0")}` : "";
  const two = (n) => String(n).padStart(2, "0");
  return (h ? `${h}:${two(m)}` : `${m}`) + `:${two(s)}${fraction}`;
}

// "fine", "doubt", "wrong" or "plain" (nobody has checked), and why.
export function verdict(time) {
  const found = [time.status ?? "unchecked"].flat().filter((word) => !["ok", "unchecked"].includes(word));
  const known = found.map((word) => CHECKS[word] ?? ["doubt", String(word).replaceAll("_", " ")]);
  if (!found.length) return time.status === undefined || time.status === "unchecked" ? ["plain", ""] : ["fine", ""];
  const kind = known.some(([word]) => word === "wrong") ? "wrong" : "doubt";
  return [kind, known.map(([, words]) => words).join("; ")];
}

// Thoughts and answer may state the same time.
export const same = (one, other) =>
  one?.of === other?.of && one?.start === other?.start && (one?.end ?? null) === (other?.end ?? null);

// The times of the thoughts ("think") or of the answer, with `at`, where they are written there. Spans count characters
// (code points) of that text, or of thoughts and answer together, `before` being the length of the thoughts.
export function placed(text, times, where, before = 0) {
  const letters = Array.from(text);
  const found = [];
  for (const time of times.filter((one) => one.span && (one.where === "think") === (where === "think"))) {
    const at = [0, before].map((base) => time.span.map((place) => place - base));
    const right = at.find(([from, to]) => from >= 0 && letters.slice(from, to).join("") === time.text);
    if (right) found.push({ ...time, at: right });
  }
  return found.sort((one, other) => one.at[0] - other.at[0]);
}

// Pieces of a text, in order: strings, and times where they are written.
function pieces(text, times) {
  const letters = Array.from(text);
  const found = [];
  let at = 0;
  for (const time of times) {
    const [from, to] = time.at;
    if (from < at || to <= from) continue;
    if (from > at) found.push(letters.slice(at, from).join(""));
    found.push({ time, words: letters.slice(from, to).join("") });
    at = to;
  }
  if (at < letters.length) found.push(letters.slice(at).join(""));
  return found;
}

// Writes a text and its placed times into an element with a link for each time; returns the links.
export function write(element, text, times, onLink) {
  const links = [];
  const nodes = pieces(text, times).map((piece) => {
    if (typeof piece === "string") return document.createTextNode(piece);
    const link = document.createElement("a");
    const [kind, why] = verdict(piece.time);
    link.href = `#t=${piece.time.start}`;
    link.className = `time-link ${kind}`;
    link.textContent = piece.words;
    link.title = `Play from ${clock(piece.time.start)}${why && `. Check this time: ${why}.`}`;
    onLink(link, piece.time);
    links.push([link, piece.time]);
    return link;
  });
  element.replaceChildren(...nodes);
  return links;
}

// What is to be said of times that did not pass the checks; empty if all did.
export function doubts(times) {
  const found = times.map((time) => [time, ...verdict(time)]).filter(([, , why]) => why);
  const words = [...new Set(found.map(([time, , why]) => `${clock(time.start)} (${why})`))];
  return words.length ? `To be checked: ${words.join(", ")}.` : "";
}

// The time that is playing: the last that has begun, as long as it has not ended.
export function playing(times, now) {
  const begun = times.filter((time) => time.start <= now + 0.05 && now < (time.end ?? Infinity));
  return begun.reduce((last, time) => (!last || time.start >= last.start ? time : last), null);
}
