// Speaks with the process: keeps the token, listens to its state, asks for actions.

const TOKEN = "token";
const SILENCE_MS = 10_000; // the state comes each second
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 5_000;

/** Take the token out of the address, where it could be copied or seen, and keep it for this tab. */
export function takeToken() {
  const said = location.hash.slice(1);
  if (!said) return;
  sessionStorage.setItem(TOKEN, said);
  history.replaceState(null, "", location.pathname);
}

function ask(path, more = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(TOKEN)}`, ...more.headers };
  return fetch(path, { ...more, headers, cache: "no-store", credentials: "omit", redirect: "error" });
}

/** Ask for one action; the answer has `event` (done or error) and `message`. */
export async function act(action) {
  try {
    const answer = await ask("/do", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(action),
    });
    return answer.ok ? await answer.json() : { event: "error", message: (await answer.text()).trim() };
  } catch {
    return { event: "error", message: "ptunnel does not answer: it was stopped, or starts anew just now. Try again." };
  }
}

/**
 * Hand every state of the process to `onState`, for as long as this tab is open.
 * `onTrouble(kind, sentence)` is called when that is interrupted; kind is "away", "token" or "busy".
 */
export async function listen(onState, onTrouble) {
  let pause = FIRST_PAUSE_MS;
  for (;;) {
    if (!sessionStorage.getItem(TOKEN)) {
      onTrouble("token", "");
      await tokenComes();
      continue;
    }
    let trouble = ["away", "ptunnel does not answer: it was stopped, or starts anew just now. This page goes on by itself then."];
    try {
      const silence = new AbortController();
      const answer = await watched(silence, ask("/events", { signal: silence.signal }));
      if (answer.status === 401) {
        sessionStorage.removeItem(TOKEN);
        continue;
      }
      if (answer.ok) {
        await readStates(answer.body, silence, (state) => {
          pause = FIRST_PAUSE_MS;
          onState(state);
        });
      } else {
        trouble = ["busy", (await answer.text()).trim()];
      }
    } catch {
      // the process has gone, or was silent: it is tried again below
    }
    onTrouble(...trouble);
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  }
}

/** Until the address has a token again: the same tab was given a new one. */
function tokenComes() {
  return new Promise((resolve) => {
    addEventListener("hashchange", () => { takeToken(); resolve(); }, { once: true });
  });
}

async function watched(silence, promise) {
  const timer = setTimeout(() => silence.abort(), SILENCE_MS);
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
  }
}

/** Read server-sent events; each has one line of data. */
async function readStates(body, silence, onState) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await watched(silence, reader.read());
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    if (events.length) onState(JSON.parse(events.at(-1).slice("data: ".length)));
  }
}
