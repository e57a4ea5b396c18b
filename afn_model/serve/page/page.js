// Where the parts of the page meet: errors, the key, colours and the keyboard.

import { call, key } from "./api.js";
import { Conversation } from "./ask.js";
import { Player } from "./player.js";
import { Recordings } from "./recordings.js";
import { Speech } from "./speech.js";

const $ = (id) => document.getElementById(id);

function tell(error) {
  $("message").textContent = error?.message ?? "";
  $("message").hidden = !error;
}

let model = "";
const player = new Player({
  onTime: (now) => conversation.follow(now),
  onHover: (time) => conversation.light(conversation.current, time),
  onError: tell,
});
const speech = new Speech({ onError: tell });
const recordings = new Recordings({
  onShow: (item) => {
    tell(null);
    player.ready = player.show(item).catch(tell);
    conversation.focus(conversation.current);
  },
  onRecord: () => speech.owner && conversation.stop(), // who speaks is not spoken to
  onRemove: (item) => conversation.turns.some((turn) => turn.heard.includes(item)) && conversation.clear(),
  onError: tell,
});
const conversation = new Conversation({ recordings, player, speech, model: () => model, onError: tell });

async function greet() {
  try {
    const { data } = await (await call("/v1/models")).json();
    model = data[0].id;
    $("model").textContent = model;
    const voices = await (await call("/v1/audio/voices")).json();
    $("aloud-row").hidden = !voices.data.length;
    tell(null);
  } catch (error) {
    tell(error);
  }
}

for (const button of document.querySelectorAll("[data-close]")) button.onclick = () => button.closest("dialog").close();
$("help-open").onclick = () => $("help").showModal();
$("key-open").onclick = () => {
  $("key").value = key.get();
  $("key-message").textContent = "";
  $("key-dialog").showModal();
};
$("key-form").onsubmit = (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  $("key-dialog").close();
  greet();
};
document.addEventListener("key-needed", ({ detail }) => {
  if (!$("key-dialog").open) $("key-open").click();
  $("key-message").textContent = detail; // what stands behind the dialog is dimmed, and not read aloud
});

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const dark = () => (document.documentElement.dataset.theme ?? (systemDark.matches ? "dark" : "light")) === "dark";
function paint() {
  $("theme").textContent = dark() ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", dark() ? "Use light colours" : "Use dark colours");
  player.repaint();
}
$("theme").onclick = () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  localStorage.setItem("afn-theme", document.documentElement.dataset.theme);
  paint();
};
systemDark.onchange = paint;
const chosen = localStorage.getItem("afn-theme");
if (chosen) document.documentElement.dataset.theme = chosen;

const KEYS = {
  " ": () => player.toggle(),
  ArrowLeft: () => player.skip(-5),
  ArrowRight: () => player.skip(5),
  "[": () => player.faster(-1),
  "]": () => player.faster(1),
  "?": () => $("help").showModal(),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") conversation.stop();
  const typing = event.target.matches("input:not([type=checkbox]), textarea, select");
  const presses = event.key === " " && event.target.matches("button, a, summary, input, label");
  if (typing || presses || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});

paint();
greet();
