// Follows a payment: on every event the page is fetched anew and what changed of it is put in.
// A socket first, then server-sent events, then asking again and again; without any of this the
// page refreshes itself.
(() => {
  "use strict";
  const root = document.documentElement;
  const main = document.getElementById("main");
  const says = document.getElementById("says");
  const parts = new Map([...main.children].map((part) => [part.id, part.outerHTML]));
  const SILENCE_MS = 45000, LINGER_MS = 2500, MOST_TRIES = 3;
  let tries = 0, busy = false, again = false, poll = 0, clock = 0, pings = 0, connection = null;
  root.classList.add("js");

  // The server's clock counts, whatever the reader's says.
  let behind = Number(main.dataset.now) - Date.now();

  const tick = () => {
    const left = document.getElementById("left");
    const ends = Number(main.dataset.ends);
    if (!left || !ends) return;
    const s = Math.max(0, Math.ceil((ends - Date.now() - behind) / 1000));
    const pad = (n) => String(n).padStart(2, "0");
    const h = Math.floor(s / 3600), text = `${h ? h + ":" : ""}${pad(Math.floor(s / 60) % 60)}:${pad(s % 60)}`;
    left.textContent = main.dataset.left.replace("#", text);
    if (s === 0) { delete main.dataset.ends; refresh(); }
  };

  // Puts in the parts that differ and leaves the others, with focus, choices and open details.
  const swap = (fresh) => {
    const focused = document.activeElement && document.activeElement.id;
    const had = main.contains(document.activeElement);
    for (const name of Object.keys(main.dataset)) delete main.dataset[name];
    Object.assign(main.dataset, fresh.dataset);
    behind = Number(main.dataset.now) - Date.now();
    for (const part of [...main.children]) {
      if (![...fresh.children].some((one) => one.id === part.id)) { part.remove(); parts.delete(part.id); }
    }
    let next = null;
    for (const part of [...fresh.children].reverse()) {
      const html = part.outerHTML;
      let kept = document.getElementById(part.id);
      if (!kept) {
        kept = document.importNode(part, true);
        main.insertBefore(kept, next);
      } else if (parts.get(part.id) !== html) {
        // The same element stays, so that a reader of a screen hears what became of the status.
        for (const { name, value } of part.attributes) kept.setAttribute(name, value);
        kept.innerHTML = part.innerHTML;
      }
      parts.set(part.id, html);
      next = kept;
    }
    if (had && !main.contains(document.activeElement)) {
      const same = focused && document.getElementById(focused);
      (same || document.getElementById("state") || main).focus({ preventScroll: true });
    }
    tick();
  };

  const arrived = () => {
    if (main.dataset.next) setTimeout(() => location.replace(main.dataset.next), LINGER_MS);
    if (!main.dataset.live) stop();
  };

  const refresh = async () => {
    if (busy) { again = true; return; }
    busy = true;
    try {
      const answer = await fetch(location.href, { cache: "no-store", headers: { Accept: "text/html" }, signal: AbortSignal.timeout(10000) });
      if (answer.ok) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        const fresh = page.getElementById("main");
        if (fresh) { document.title = page.title; swap(fresh); arrived(); }
      }
    } catch {
      // No network now: the next event, or the next look, tries again.
    }
    busy = false;
    if (again) { again = false; refresh(); }
  };

  const stop = () => {
    clearInterval(poll); clearInterval(clock); poll = 0;
    if (connection) { connection.end(); connection = null; }
  };

  const ask = () => { if (!poll) poll = setInterval(refresh, 1000 * (Number(main.dataset.every) || 60)); };

  // One connection of either kind; `open` wires it up, and gives what ends it.
  const connect = (open, after) => {
    let timer = 0, ended = false;
    const end = () => { if (!ended) { ended = true; clearTimeout(timer); close(); } };
    const failed = () => { if (!ended) { end(); connection = null; if (main.dataset.live) after(); } };
    const heard = (text) => {
      if (ended) return;
      clearTimeout(timer);
      timer = setTimeout(failed, SILENCE_MS);
      if (!text) return;
      tries = 0;
      // Every third ping the page looks for itself, should the stream of events have halted.
      pings = JSON.parse(text).type === "ping" ? pings + 1 : 0;
      if (pings % 3 === 0) refresh();
    };
    const close = open(heard, failed);
    timer = setTimeout(failed, SILENCE_MS);
    connection = { end };
  };

  // Tries again with the token of a fresh page, a little later each time.
  const later = (work) => {
    tries += 1;
    setTimeout(async () => { await refresh(); if (main.dataset.live && !connection) work(); }, 500 * 2 ** tries);
  };

  const socket = () => connect((heard, failed) => {
    const address = location.origin.replace(/^http/, "ws") + main.dataset.live + "/ws" + main.dataset.token;
    const ws = new WebSocket(address);
    ws.onmessage = (message) => heard(message.data);
    ws.onclose = ws.onerror = failed;
    return () => ws.close();
  }, () => (tries < MOST_TRIES ? later(socket) : events()));

  const events = () => connect((heard, failed) => {
    const source = new EventSource(main.dataset.live + "/sse" + main.dataset.token);
    for (const kind of ["state", "event", "ping"]) source.addEventListener(kind, (message) => heard(message.data));
    source.onerror = failed;
    return () => source.close();
  }, () => (tries < 2 * MOST_TRIES ? later(events) : ask()));

  const copied = async (button) => {
    const value = button.dataset.copy, label = button.textContent;
    try {
      await navigator.clipboard.writeText(value);
    } catch {
      // An older browser, or a page that is not on https: the selection is copied instead.
      getSelection().selectAllChildren(button.closest("dd").querySelector(".value"));
      document.execCommand("copy");
    }
    button.textContent = says.textContent = button.dataset.done;
    setTimeout(() => { button.textContent = label; says.textContent = ""; }, 2000);
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button && button.dataset.copy && button.textContent !== button.dataset.done) copied(button);
    if (button && button.id === "print") print();
  });
  // Paying by the demo's button needs no new page: what it does comes back as an event.
  document.addEventListener("submit", async (event) => {
    if (!event.target.action.includes("/demo-pay")) return;
    event.preventDefault();
    const button = event.target.querySelector("button");
    if (button.ariaDisabled === "true") return;
    // Not disabled in earnest, which would take the focus away from whoever is on it.
    button.ariaDisabled = "true";
    try {
      const answer = await fetch(event.target.action, { method: "POST", headers: { Accept: "text/html" }, redirect: "manual" });
      if (answer.type !== "opaqueredirect") location.reload();
    } catch {
      button.ariaDisabled = "false";
    }
    refresh();
  });

  clock = setInterval(tick, 1000);
  tick();
  if (main.dataset.live) socket();
  if (main.dataset.next) arrived();
})();
