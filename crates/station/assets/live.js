// Refreshes the page: fetches /fragment every two seconds and swaps it in. Keeps focus, scrolling and selection.
"use strict";

(() => {
  const EVERY_MS = 2000;
  const ANSWER_MAX_MS = 5000;
  const live = document.getElementById("live");
  const lost = document.getElementById("lost");
  let confirmed = new Date();
  let timer = 0;

  const age = () => {
    const seconds = Math.round((Date.now() - confirmed.getTime()) / 1000);
    return seconds < 120 ? `${seconds} s` : `${Math.floor(seconds / 60)} min`;
  };

  const selecting = () => {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && live.contains(selection.anchorNode);
  };

  const swap = (text) => {
    const parsed = new DOMParser().parseFromString(text, "text/html");
    const scrolled = [...live.querySelectorAll(".scroll")].map((box) => [box.id, box.scrollLeft, box.scrollTop]);
    const focused = live.contains(document.activeElement) ? document.activeElement.id : "";
    live.replaceChildren(...parsed.body.childNodes);
    for (const [id, left, top] of scrolled) {
      const box = document.getElementById(id);
      if (box) box.scrollTo(left, top);
    }
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  };

  const refresh = async () => {
    try {
      const answer = await fetch("/fragment", { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MAX_MS) });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const text = await answer.text();
      confirmed = new Date();
      lost.hidden = true;
      live.classList.remove("old");
      if (!selecting()) swap(text);
    } catch {
      lost.textContent = `Connection lost: data as of ${confirmed.toISOString().slice(11, 19)} UTC, ${age()} ago. Trying again.`;
      lost.hidden = false;
      live.classList.add("old");
    }
  };

  const turn = async () => {
    window.clearTimeout(timer);
    if (!document.hidden) await refresh();
    window.clearTimeout(timer);
    timer = window.setTimeout(turn, EVERY_MS);
  };

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) turn();
  });
  timer = window.setTimeout(turn, EVERY_MS);
})();
