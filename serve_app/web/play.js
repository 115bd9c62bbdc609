// A game client in a page: lobbies by the public API, live by EventSource, the game by WebSocket.
// What it needs comes in the URL's fragment, which browsers send to nobody: #key=<client key>&config=…&mode=…
"use strict";

const given = new URLSearchParams(location.hash.slice(1));
const CONFIG = given.get("config") || "demo";
const MODE = given.get("mode") || "1v1";
const LIST_MS = 3000, AGAIN_MS = 1000, ARENA_MS = 2000, FAULT_MS = 8000, MAX_LINES = 100;
const $ = (id) => document.getElementById(id);

let key = given.get("key") || "";
let lobby = null; // as last told
let stream = null;
let game = null; // {address, socket, ended}
// Each tab is a player of its own, and stays so when it is loaded again.
const me = sessionStorage.getItem("player") || newPlayer();

function newPlayer() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  const id = "web-" + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  sessionStorage.setItem("player", id);
  return id;
}

const myName = () => $("name").value.trim() || "Player " + me.slice(-4);
const nameOf = (player) => String(player.state?.name || player.id).slice(0, 24);

// Calls ----------------------------------------------------------------------------------------------------------

async function call(method, path, body) {
  const headers = { "api-key": key, "x-player-id": me };
  if (body !== undefined) headers["content-type"] = "application/json";
  const url = `/api/v3/lobbies/${encodeURIComponent(CONFIG)}${path}`;
  const answer = await fetch(url, { method, headers, body: JSON.stringify(body) });
  const found = await answer.json().catch(() => ({}));
  if (answer.ok) return found;
  throw Object.assign(new Error(found.detail || `The fleet answers ${answer.status}.`), { status: answer.status });
}

function complain(error) {
  $("fault").textContent = error.message;
  $("fault").hidden = false;
  clearTimeout(complain.timer);
  complain.timer = setTimeout(() => { $("fault").hidden = true; }, FAULT_MS);
}

/** What a button does: one at a time, faults shown. */
function does(id, action, event = "click") {
  $(id).addEventListener(event, async (happened) => {
    happened.preventDefault();
    if (does.busy) return;
    does.busy = true;
    $("fault").hidden = true;
    try {
      await action();
    } catch (error) {
      complain(error);
    } finally {
      does.busy = false;
    }
  });
}

// In and out of lobbies --------------------------------------------------------------------------------------------

async function enter(path, body) {
  if (!$("key-row").hidden) key = $("key").value.trim();
  if (!key.startsWith("pfclient_")) throw new Error("A client key is needed: it begins with pfclient_.");
  sessionStorage.setItem("name", $("name").value.trim());
  hear(await call("POST", path, { ...body, state: { name: myName(), ready: false } }));
  await listen();
}

/** The stream tells all in order; an answer counts if it is newer, for the stream may overtake it within a millisecond. */
function hear(told, live = false) {
  if (lobby?.id === told.id && (told.updatedAt < lobby.updatedAt || (!live && told.updatedAt === lobby.updatedAt))) return;
  lobby = told;
  sessionStorage.setItem("lobby", lobby.id);
  render();
}

function goHome() {
  $("open").hidden = !key; // nobody without one may see them
  stream?.close();
  stream = lobby = null;
  sessionStorage.removeItem("lobby");
  render();
  list();
}

/** Follow the lobby. EventSource comes again by itself, and goes on where it was; a closed one needs a new ticket. */
async function listen() {
  stream?.close();
  const { url } = await call("POST", "/me/events-token", {});
  const mine = stream = new EventSource(url);
  const heard = (event) => { if (stream === mine) hear(JSON.parse(event.data), true); };
  mine.addEventListener("connected", heard);
  mine.addEventListener("lobby_updated", heard);
  mine.addEventListener("queue_stats", (event) => tellQueue(JSON.parse(event.data)));
  mine.addEventListener("lobby_deleted", () => { if (stream === mine) goHome(); });
  mine.addEventListener("error", () => {
    if (stream === mine && mine.readyState === EventSource.CLOSED) setTimeout(resume, AGAIN_MS, mine);
  });
}

/** Where this player is, asked when the stream is gone and when the page is loaded. */
async function resume(closed) {
  if (stream !== closed) return;
  try {
    hear(await call("GET", "/me"));
    await listen();
  } catch (error) {
    if (error.status === 404) goHome();
    else if (closed && !(error.status < 429)) setTimeout(resume, AGAIN_MS, closed);
    else { complain(error); goHome(); }
  }
}

async function list() {
  clearTimeout(list.timer);
  if (lobby) return;
  try {
    if (key) showList((await call("GET", "?limit=20")).lobbies);
  } catch (error) {
    complain(error);
  }
  list.timer = setTimeout(list, LIST_MS);
}

// What is seen -----------------------------------------------------------------------------------------------------

// Text of other players only ever becomes text nodes.
function element(tag, className, text, ...children) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(text, ...children);
  return made;
}

function button(text, action) {
  const made = element("button", "small", text);
  made.type = "button";
  made.addEventListener("click", () => action().catch(complain));
  return made;
}

function showList(lobbies) {
  const open = lobbies.filter((one) => one.currentPlayers < one.maxPlayers && one.status === "waiting");
  $("lobbies").replaceChildren(...open.map((one) => element("li", "", element("span", "", one.name),
    element("span", "tag", `${one.currentPlayers} of ${one.maxPlayers}`), element("span", "tag", one.region),
    button("Join", () => enter("/join", { lobbyId: one.id })))));
  $("none").hidden = open.length > 0;
}

function showPlayer(player, iAmHost) {
  const tags = [];
  if (player.id === me) tags.push(element("span", "tag", "you"));
  if (player.isHost) tags.push(element("span", "tag", "host"));
  const waiting = lobby.status === "waiting", ready = Boolean(player.state?.ready);
  if (waiting) tags.push(element("span", ready ? "tag good" : "tag", ready ? "ready" : "not ready"));
  if (iAmHost && player.id !== me && waiting) {
    tags.push(button("Kick", async () => hear(await call("DELETE", `/me/players/${encodeURIComponent(player.id)}`))));
  }
  return element("li", "", element("span", "", nameOf(player)), ...tags);
}

const NEWS = {
  waiting: "Waiting for the host to start.", in_queue: "Looking for opponents …", matched: "Opponents found.",
  match_found: "A match was found. Do you want it?", starting: "A server is being started …", in_game: "In the game.",
};

function render() {
  $("home").hidden = Boolean(lobby);
  $("lobby").hidden = !lobby;
  $("me").hidden = !lobby;
  play();
  if (!lobby) return;
  const { status, players } = lobby;
  const mine = players.find((player) => player.id === me);
  const host = Boolean(mine?.isHost), waiting = status === "waiting";
  $("me").textContent = mine ? nameOf(mine) : "";
  $("title").textContent = lobby.name;
  $("status").textContent = status.replaceAll("_", " ");
  $("status").dataset.is = status;
  $("lobby-code").textContent = lobby.code;
  $("invite").hidden = players.length >= lobby.maxPlayers;
  $("players").replaceChildren(...players.map((player) => showPlayer(player, host)));
  $("news").textContent = waiting && host ? "You are the host: start when everybody is here." : NEWS[status] || status;
  if (lobby.matchmaking) tellQueue(lobby.matchmaking.queueStats);
  $("ready").textContent = mine?.state?.ready ? "Not ready" : "Ready";
  const asked = status === "match_found" && lobby.matchmaking?.confirmation?.confirmed === false;
  const shown = {
    ready: waiting, start: waiting && host, queue: waiting && host && players.length === 1,
    cancel: host && status === "in_queue", confirm: asked, decline: asked, end: host && status === "in_game",
  };
  for (const [id, is] of Object.entries(shown)) $(id).hidden = !is;
}

function tellQueue(stats) {
  if (lobby?.status === "in_queue") $("news").textContent = `Looking for opponents … ${stats.playersSearching} searching`;
}

// The game ---------------------------------------------------------------------------------------------------------

/** Be connected to the lobby's server while there is one that runs, and to no other. */
function play() {
  const server = lobby?.status === "in_game" && lobby.server?.status === "running" ? lobby.server : null;
  const port = server?.network_ports.find((one) => one.protocol === "tcp" && one.name === "web");
  const address = port ? `${port.host}:${port.external_port}` : "";
  $("game").hidden = !server;
  $("address").textContent = address;
  if (server && !port) $("link").textContent = "This game has no TCP port named web, and browsers have no UDP.";
  if (game?.address === address && game?.server === server?.instance_id) return;
  if (game) quit(game);
  game = null;
  if (!port) return;
  $("log").replaceChildren();
  $("arena").textContent = "…";
  game = { address, server: server.instance_id, url: `${port.tls_enabled ? "wss" : "ws"}://${address}/` };
  connect(game);
}

function connect(to) {
  if (to.ended) return;
  $("link").textContent = `Connecting to ${to.url} …`;
  to.socket = new WebSocket(to.url);
  to.socket.addEventListener("open", () => {
    $("link").textContent = `Connected to ${to.url}`;
    send(to, `join ${myName()}`);
    clearInterval(to.timer);
    to.timer = setInterval(() => { if (to.socket.readyState === WebSocket.OPEN) to.socket.send("state"); }, ARENA_MS);
  });
  to.socket.addEventListener("message", (event) => { if (!to.ended) answered(to, String(event.data)); });
  to.socket.addEventListener("close", () => {
    if (to.ended) return;
    $("link").textContent = "No connection to the game; trying again …";
    setTimeout(connect, AGAIN_MS, to);
  });
}

function quit(from) {
  from.ended = true;
  clearInterval(from.timer);
  if (from.socket?.readyState === WebSocket.OPEN) from.socket.send(`leave ${myName()}`);
  from.socket?.close();
}

function send(to, word) {
  if (word === "state") to.asked = true;
  line(`> ${word}`, "ours");
  to.socket.send(word);
}

function answered(from, text) {
  let state = null;
  try { state = JSON.parse(text); } catch { /* a word, not a state */ }
  if (Array.isArray(state?.players)) $("arena").textContent = state.players.join(", ") || "nobody";
  if (!state?.players || from.asked) line(text, "");
  if (state?.players) from.asked = false;
}

function line(text, className) {
  const log = $("log");
  log.append(element("li", className, text));
  while (log.children.length > MAX_LINES) log.firstChild.remove();
  log.scrollTop = log.scrollHeight;
}

// The beginning ----------------------------------------------------------------------------------------------------

does("create", () => enter("", { name: `${myName()}'s lobby`, maxPlayers: 2, isPrivate: $("private").checked }));
does("quick", async () => {
  await enter("", { name: `${myName()}'s quick ${MODE}`, maxPlayers: 1, isPrivate: true });
  hear(await call("POST", "/me/matchmaking", { mode: MODE }));
});
does("join", () => enter("/join", { code: $("code").value.trim() }), "submit");
does("ready", async () => {
  const mine = lobby.players.find((player) => player.id === me);
  hear(await call("PATCH", "/me", { state: { ready: !mine?.state?.ready } }));
});
does("start", async () => hear(await call("POST", "/me/start", {})));
does("queue", async () => hear(await call("POST", "/me/matchmaking", { mode: MODE })));
does("cancel", async () => hear(await call("DELETE", "/me/matchmaking")));
does("confirm", async () => hear(await call("POST", "/me/confirm-match", {})));
does("decline", async () => hear(await call("DELETE", "/me/confirm-match")));
does("end", async () => hear(await call("POST", "/me/end-match", {})));
does("leave", async () => { await call("DELETE", "/me"); goHome(); });
does("say", () => {
  const word = $("word").value.trim();
  if (word && game?.socket.readyState === WebSocket.OPEN) send(game, word);
  $("word").value = "";
}, "submit");

addEventListener("hashchange", () => location.reload());
for (const place of document.querySelectorAll(".mode")) place.textContent = MODE;
$("name").value = sessionStorage.getItem("name") || "";
$("key-row").hidden = Boolean(key);
if (key && sessionStorage.getItem("lobby")) resume(null);
else goHome();
