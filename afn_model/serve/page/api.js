// What the page asks the server: with the key, and with errors that are sentences.

const KEY = "afn-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export const sentence = (text) => {
  const said = String(text || "Something went wrong").trim();
  return said[0].toUpperCase() + said.slice(1) + (/[.!?…]$/.test(said) ? "" : ".");
};

function refused(status, text) {
  if (status === 401) {
    const told = key.get() ? "The server does not take this API key." : "This server asks for an API key.";
    document.dispatchEvent(new CustomEvent("key-needed", { detail: told }));
    return new Error(told);
  }
  let said = "";
  try {
    const { message, param } = JSON.parse(text).error;
    said = param && message.startsWith(`${param}: `) ? message.slice(param.length + 2) : message; // a field is no word here
  } catch {
    said = `The server answered with an error (${status})`;
  }
  return new Error(sentence(said));
}

const headers = () => (key.get() ? { Authorization: `Bearer ${key.get()}` } : {});
const unreachable = () => new Error("The server cannot be reached.");

export async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
  if (!response.ok) throw refused(response.status, await response.text());
  return response;
}

export const asks = (path, body, signal) =>
  call(path, { method: "POST", body: JSON.stringify(body), signal, headers: { "Content-Type": "application/json" } });

// Sends a file's bytes; XMLHttpRequest, because fetch does not say how much has been sent.
export function upload(file, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/v1/audio");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.setRequestHeader("Content-Type", file.type || "application/octet-stream");
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onerror = () => reject(unreachable());
    request.onload = () => {
      if (request.status >= 300) return reject(refused(request.status, request.responseText));
      return resolve(JSON.parse(request.responseText));
    };
    request.send(file);
  });
}

// The data of server-sent events, parsed, up to [DONE]; an error among them is thrown.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("The connection ended before the answer did.");
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Error(sentence(event.error.message));
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
