// The page: shows what comes, sends what the person does, and says each result where it happened.

import { act, listen, takeToken } from "./talk.js";
import { Screen, setText } from "./show.js";

const NO_TOKEN = "This page needs the address that 'ptunnel page' prints: run that in a terminal, and open what it says.";
const GOOD_NEWS_MS = 5_000;

const byId = (id) => document.getElementById(id);
const words = (text) => text.split(/[\s,]+/).filter(Boolean);

let pid = null;
let isAway = false;

function say(text, style = "") {
  const state = byId("state");
  setText(state, text);
  state.className = `state ${style}`;
}

function onState(state) {
  if (isAway || pid === null) {
    const isNew = pid !== null && pid !== state.pid;
    say(pid === null ? "" : isNew ? "ptunnel has started anew, and answers." : "ptunnel answers again.", "is-good");
    if (pid !== null) setTimeout(() => isAway || say(""), GOOD_NEWS_MS);
  }
  isAway = false;
  pid = state.pid;
  byId("main").hidden = false;
  screen.show(state, state.uptime_s);
}

function onTrouble(kind, sentence) {
  isAway = true;
  if (kind === "token") {
    byId("main").hidden = true;
    sentence = NO_TOKEN;
  }
  say(sentence, "is-bad");
}

/** Say in `place` how an action ended. */
function tell(place, answer) {
  const isBad = answer.event === "error";
  place.className = `answer ${isBad ? "is-bad" : "is-good"}`;
  place.textContent = answer.message;
  return !isBad;
}

/** Have `form` send the action that `read` makes of its fields, one at a time. */
function sends(form, read, onDone = () => {}) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button:not([type])");
    if (button.disabled) return;
    const inputs = [...form.querySelectorAll("input")];
    const place = form.querySelector(".answer");
    place.textContent = "";
    button.disabled = true;
    form.setAttribute("aria-busy", "true");
    const answer = await act(read(form));
    form.removeAttribute("aria-busy");
    button.disabled = false;
    const isDone = tell(place, answer);
    inputs[0].setAttribute("aria-invalid", String(!isDone));
    if (isDone) {
      inputs.forEach((input) => { input.value = ""; });
      onDone(answer);
    }
    if (document.activeElement === document.body) inputs[0].focus(); // the button lost it while it was disabled
  });
  form.addEventListener("input", (event) => event.target.removeAttribute("aria-invalid"));
}

/** Ask before something is taken away. */
function isSure(question, verb) {
  setText(byId("ask-text"), question);
  setText(byId("ask-yes"), verb);
  const dialog = byId("ask");
  dialog.returnValue = "no"; // for Escape
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

async function takeAway(card, question, verb, action) {
  if (!(await isSure(question, verb))) return;
  card.title.focus(); // the button that had the focus goes
  tell(card.answer, await act(action));
}

const screen = new Screen({
  addForward: (peer, form) => sends(form, () => ({ do: "add_forward", peer, spec: form.elements.value.value.trim() })),
  grant: (peer, form) => sends(form, () => ({ do: "grant", peer, what: words(form.elements.value.value) })),
  removeForward: (peer, spec, card) =>
    takeAway(card, `Remove the forward ${spec} to ${peer}? What is open through it ends.`, "Remove", { do: "remove_forward", peer, spec }),
  revoke: (peer, what, card) =>
    takeAway(card, `Take ${what} back from ${peer}? What is open of it ends.`, "Take back", { do: "revoke", peer, what: [what] }),
});

sends(byId("invite"), (form) => ({ do: "invite", what: words(form.elements.what.value) }), (answer) => {
  setText(byId("code"), answer.code);
  setText(byId("command"), answer.command);
  byId("picture").src = answer.picture;
  byId("picture").alt = `QR code of: ${answer.command}`;
  setText(byId("copy"), "Copy the command");
  byId("invitation").hidden = false;
});

sends(byId("join"), (form) => ({ do: "join", code: form.elements.code.value.trim(), forwards: words(form.elements.forwards.value) }));

byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(byId("command").textContent);
    setText(byId("copy"), "Copied");
  } catch {
    setText(byId("copy"), "The browser did not allow it: mark it and copy");
  }
});

takeToken();
addEventListener("hashchange", takeToken);
listen(onState, onTrouble);
