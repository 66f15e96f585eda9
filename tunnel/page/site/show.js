// Shows the state: a card for each peer and for each room.  What others have named themselves is text, never markup.

import { Plot, duration, milliseconds, percent, rate } from "./plot.js";

const ROLES = { carries: "carries", in_use: "is in use", stands_by: "stands by", ends: "ends", silent: "is silent", idle: "is not needed" };

let serial = 0;

/** An element with its properties and what is in it: texts and elements. */
function make(name, properties = {}, ...inside) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...inside);
  return element;
}

/** Change a text only where it has changed: a reader of the screen keeps its place. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Make `list` hold one element for each of `things`: those that stay are left alone, with the focus in them. */
function keep(list, things, keyOf, build) {
  const there = new Map([...list.children].map((element) => [element.dataset.key, element]));
  const wanted = things.map((thing) => {
    const key = keyOf(thing);
    const element = there.get(key) ?? build(thing);
    element.dataset.key = key;
    there.delete(key);
    return element;
  });
  there.forEach((element) => element.remove());
  wanted.forEach((element, index) => {
    if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
  });
}

/** A list of things with a button each that takes one away. */
class Things {
  constructor(title, nothing, verb, onRemove) {
    this.verb = verb;
    this.onRemove = onRemove;
    this.nothing = make("p", { className: "hint" }, nothing);
    this.list = make("ul", { className: "things" });
    this.element = make("div", {}, make("h4", {}, title), this.nothing, this.list);
  }

  show(texts) {
    this.nothing.hidden = texts.length > 0;
    keep(this.list, texts, (text) => text, (text) => {
      const button = make("button", { type: "button", className: "quiet" }, this.verb, make("span", { className: "gone" }, ` ${text}`));
      button.addEventListener("click", () => this.onRemove(text));
      return make("li", {}, make("span", { className: "mono" }, text), button);
    });
  }
}

/** What each of several servers is, and why. */
class Servers {
  constructor(name) {
    this.element = make("ul", { className: "servers", ariaLabel: name });
  }

  /** Those of these roles. */
  show(servers, roles) {
    const shown = servers.filter((each) => roles.includes(each.role));
    this.element.hidden = !shown.length;
    keep(this.element, shown, (each) => each.server, () => make("li", {}, make("span", { className: "mono" }), make("span")));
    shown.forEach((each, index) => {
      const trips = [each.rtt_s, each.peer_rtt_s].map((trip) => (trip == null ? "" : milliseconds(trip)));
      const [here, there] = [trips[0] && `${trips[0]} from here`, trips[1] && `${trips[1]} from there`];
      const [server, text] = this.element.children[index].children;
      setText(server, each.server);
      setText(text, ` ${ROLES[each.role]}: ${[each.why, here, there].filter(Boolean).join(", ")}`);
    });
  }
}

/** A form of one field in a card. */
function fieldForm(label, placeholder, verb, onSend) {
  const id = `field-${++serial}`;
  const input = make("input", { id, name: "value", required: true, placeholder, spellcheck: false, autocapitalize: "off" });
  const form = make("form", { className: "inline", autocomplete: "off" },
    make("div", {}, make("label", { htmlFor: id }, label), input), make("button", {}, verb),
    make("p", { className: "answer", role: "alert" }));
  onSend(form);
  return form;
}

class PeerCard {
  constructor(name, actions) {
    const titleId = `peer-${++serial}`;
    this.title = make("h3", { id: titleId, tabIndex: -1 }, name);
    this.badge = make("span", { className: "badge" });
    this.path = make("span", { className: "hint" });
    this.why = make("p", { className: "why" });
    this.plots = {
      rtt: new Plot("Round trip", milliseconds, 0.02),
      loss: new Plot("Lost", percent, 0.05),
      down: new Plot("Received", rate, 10_000),
      up: new Plot("Sent", rate, 10_000),
    };
    this.plotRow = make("div", { className: "plots" }, ...Object.values(this.plots).map((plot) => plot.element));
    const remove = (text) => actions.removeForward(name, this.specs.get(text), this);
    this.relays = new Servers(`Servers that could relay to ${name}`);
    this.forwards = new Things("Ports of theirs, here", "None yet.", "Remove", remove);
    this.remotes = new Things("Ports of this machine, there", "", "Remove", remove);
    this.grants = new Things("What they may reach here", "Nothing.", "Take back", (text) => actions.revoke(name, text, this));
    this.answer = make("p", { className: "answer", role: "alert" });
    const add = fieldForm("LOCAL:REMOTE, as in 2222:22", "8080:80 or remote:8080:3000", "Add", (form) => actions.addForward(name, form));
    const grant = fieldForm("Ports of this machine", "22 8080", "Allow", (form) => actions.grant(name, form));
    this.element = make("article", { className: "card" },
      make("div", { className: "top" }, this.title, this.badge, this.path), this.why, this.relays.element, this.plotRow,
      make("div", { className: "pair" }, make("div", {}, this.forwards.element, this.remotes.element, add), make("div", {}, this.grants.element, grant)),
      this.answer);
    this.element.setAttribute("aria-labelledby", titleId);
    this.before = null;
    this.specs = new Map();
  }

  show(peer, at) {
    const link = peer.link;
    const kind = link?.reachable === false ? "silent" : link?.kind ?? "away";
    const [badge, style] = {
      direct: ["direct", "is-direct"], relay: ["relayed", "is-relay"], silent: ["silent", "is-away"], away: ["not connected", "is-away"],
    }[kind] ?? [kind, ""];
    setText(this.badge, badge);
    this.badge.className = `badge ${style}`;
    setText(this.path, link?.kind ? link.remote ?? "" : "");
    setText(this.why, kind === "relay" ? link.why : kind === "silent" ? "Nothing gets through just now; it is waited for." : peer.why ?? "");
    this.plotRow.hidden = !link;
    if (link) this.plot(link, at);
    else this.before = null;
    const forwards = specsOf(peer.forwards, (each) => `${each.bind} → ${each.target}${limitOf(each)}`);
    const remotes = specsOf(peer.remotes, (each) => `${each.bind} there → ${each.target}${limitOf(each)}${each.listening ? "" : ", not yet"}`);
    this.specs = new Map([...forwards, ...remotes]);
    this.forwards.show([...forwards.keys()]);
    this.remotes.show([...remotes.keys()]);
    this.remotes.element.hidden = !remotes.size;
    this.relays.show(kind === "relay" ? link.relays ?? [] : [], ["carries", "stands_by"]);
    this.grants.show(peer.grants);
  }

  /** Rates and loss are of the time since the state before. */
  plot(link, at) {
    const before = this.before;
    this.before = { link, at };
    this.plots.rtt.add(link.kind ? link.rtt_s : null);
    if (before === null || at <= before.at || link.packets_sent < before.link.packets_sent) return; // the first, or a new link
    const sent = link.packets_sent - before.link.packets_sent;
    const lost = Math.max(0, link.packets_lost - before.link.packets_lost);
    this.plots.loss.add(sent ? Math.min(1, lost / sent) : 0);
    this.plots.down.add((link.received_bytes - before.link.received_bytes) / (at - before.at));
    this.plots.up.add((link.sent_bytes - before.link.sent_bytes) / (at - before.at));
  }
}

class RoomCard {
  constructor(name) {
    const titleId = `room-${++serial}`;
    this.where = make("p", { className: "hint" });
    this.body = make("tbody");
    const heads = ["Member", "State", "IPv4", "IPv6"].map((text) => make("th", { scope: "col" }, text));
    this.element = make("article", { className: "card" }, make("h3", { id: titleId }, name), this.where,
      make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: `Members of ${name}` },
        make("table", {}, make("thead", {}, make("tr", {}, ...heads)), this.body)));
    this.element.setAttribute("aria-labelledby", titleId);
  }

  show(room) {
    setText(this.where, [room.why ?? "", room.creator ? "made here" : "", room.subnet ?? "", room.interface ?? ""].filter(Boolean).join(" · "));
    keep(this.body, room.members ?? [], (member) => member.peer, () => make("tr", {}, make("th", { scope: "row" }), make("td"), make("td"), make("td")));
    (room.members ?? []).forEach((member, index) => {
      const note = [member.self ? "you" : "", member.creator ? "made it" : ""].filter(Boolean).join(", ");
      const texts = [note ? `${member.peer} (${note})` : member.peer, member.online ? "there" : "away", member.address, member.ipv6];
      texts.forEach((text, column) => setText(this.body.children[index].children[column], text));
    });
  }
}

export class Screen {
  constructor(actions) {
    this.actions = actions;
    this.peers = new Map();
    this.rooms = new Map();
    this.servers = new Servers("Servers");
    document.getElementById("servers").append(this.servers.element);
  }

  show(state, at) {
    setText(document.getElementById("summary"), summary(state));
    const peers = peersOf(state);
    document.getElementById("no-peers").hidden = peers.length > 0;
    this.cards(document.getElementById("peers"), this.peers, peers, (peer) => peer.name, (peer) => new PeerCard(peer.name, this.actions), at);
    const servers = state.servers ?? [];
    document.getElementById("servers-section").hidden = servers.length < 2 && servers.every((each) => each.role !== "silent");
    this.servers.show(servers, Object.keys(ROLES));
    const rooms = state.rooms ?? [];
    document.getElementById("rooms-section").hidden = !rooms.length;
    this.cards(document.getElementById("rooms"), this.rooms, rooms, (room) => room.room, (room) => new RoomCard(room.room), at);
  }

  cards(list, cards, things, keyOf, build, at) {
    keep(list, things, keyOf, (thing) => {
      const card = build(thing);
      cards.set(keyOf(thing), card);
      return card.element;
    });
    const there = new Set(things.map(keyOf));
    [...cards.keys()].filter((key) => !there.has(key)).forEach((key) => cards.delete(key));
    things.forEach((thing) => cards.get(keyOf(thing)).show(thing, at));
  }
}

/** Everybody who is remembered or connected, with the link, the forwards and the grants of each. */
function peersOf(state) {
  const peers = new Map();
  const of = (name) => peers.get(name) ?? peers.set(name, { name, link: null, forwards: [], remotes: [], grants: [], why: "" }).get(name);
  for (const each of state.peers ?? []) Object.assign(of(each.peer), { grants: each.grants ?? [], why: each.why ?? "" });
  for (const link of state.links) of(link.peer).link = link;
  for (const forward of state.forwards ?? []) if (forward.peer) of(forward.peer).forwards.push(forward);
  for (const remote of state.remotes ?? []) of(remote.peer).remotes.push(remote);
  return [...peers.values()].sort((one, other) => one.name.localeCompare(other.name));
}

/** What is shown of each forward -> how it was asked for; one that has many ports is shown by its first. */
function specsOf(forwards, shown) {
  const bySpec = new Map();
  for (const each of forwards) bySpec.set(each.spec, [...bySpec.get(each.spec) ?? [], shown(each)]);
  return new Map([...bySpec].map(([spec, [first, ...more]]) => [more.length ? `${first} and ${more.length} more` : first, spec]));
}

function limitOf(each) {
  return each.rate ? `, at most ${rate(each.rate)}` : "";
}

function summary(state) {
  const count = state.links.filter((link) => link.kind && link.reachable !== false).length;
  const parts = [`${count} connected`, `runs for ${duration(state.uptime_s)}`];
  if (state.server) parts.push(`server ${state.server}`);
  return parts.join(" · ");
}
