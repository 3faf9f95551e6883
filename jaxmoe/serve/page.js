"use strict";
(() => {
const byId = (id) => document.getElementById(id);
const facts = JSON.parse(byId("facts").textContent);
const why = { repetition: "may repeat itself", low_confidence: "unsure", no_speech: "may be no speech" };
const waiting = []; // [sound, name] of what is to be sent
let recorder = null, request = null, busy = false, ticking = 0, recordings = 0;

function say(text, bad) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", Boolean(bad));
  byId("status").scrollIntoView({ block: "nearest" });
}

function clock(on) { // seconds that pass are seen and not read aloud
  clearInterval(ticking);
  byId("clock").textContent = "";
  const began = Date.now();
  const show = () => { byId("clock").textContent = time((Date.now() - began) / 1000); };
  if (on) ticking = setInterval(show, 1000);
}

const time = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const headers = () => (facts.needs_key ? { Authorization: `Bearer ${byId("key").value.trim()}` } : {});

function show() { // which buttons there are
  const recording = recorder !== null;
  byId("record").classList.toggle("on", recording);
  byId("record-label").textContent = recording ? "Stop and transcribe" : "Record";
  byId("choose").disabled = recording; // and stays where it is: what moves is hit by mistake
  byId("cancel").hidden = !recording && !busy;
  byId("cancel").textContent = recording ? "Discard" : "Cancel";
}

async function record() {
  if (recorder) { recorder.stop(); return; }
  let stream;
  try { // what browsers take for noise may be weak speech
    stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: true } });
  } catch (error) {
    say(`The microphone cannot be used (${error.name}). Allow it in the browser, or choose a file.`, true);
    return;
  }
  const type = ["audio/webm;codecs=opus", "audio/mp4", "audio/ogg;codecs=opus"].find((t) => MediaRecorder.isTypeSupported(t));
  const parts = [];
  recorder = new MediaRecorder(stream, type ? { mimeType: type } : {});
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = () => {
    const { mimeType, discarded } = recorder;
    stream.getTracks().forEach((track) => track.stop());
    recorder = null;
    clock(false);
    show();
    if (discarded) { say("Discarded."); return; }
    recordings += 1;
    const suffix = mimeType.includes("mp4") ? "mp4" : mimeType.includes("ogg") ? "ogg" : "webm";
    send([[new Blob(parts, { type: mimeType }), `recording-${recordings}.${suffix}`]]);
  };
  recorder.start(1000);
  say("Recording. Speak, then press “Stop and transcribe”.");
  clock(true);
  show();
}

function cancel() {
  if (recorder) { recorder.discarded = true; recorder.stop(); } else { waiting.length = 0; if (request) request.abort(); }
  byId("record").focus();
}

async function send(sounds) {
  waiting.push(...sounds);
  if (busy) return;
  busy = true;
  show();
  let failures = 0;
  while (waiting.length) {
    const [sound, name] = waiting.shift();
    say(`Writing down ${name}${waiting.length ? `, ${waiting.length} more to come` : ""} …`);
    clock(true);
    request = new AbortController();
    try {
      add(await transcribe(sound, name, request.signal), sound, name);
    } catch (error) {
      failures += 1;
      say(error.name === "AbortError" ? "Cancelled." : error.message, error.name !== "AbortError");
    }
  }
  request = null;
  busy = false;
  clock(false);
  show();
  if (failures) return;
  say("Done. The text is below.");
  byId("results").firstElementChild.scrollIntoView({ block: "nearest" });
}

async function transcribe(sound, name, signal) {
  if (sound.size > facts.max_bytes) throw new Error(`${name} is larger than ${facts.max_bytes / 1e6} MB; as an mp3 it is smaller.`);
  const german = byId("german");
  for (;;) {
    const form = new FormData();
    form.append("model", facts.model);
    form.append("response_format", "verbose_json");
    if (german && german.checked) form.append("translate_to", facts.translate_to);
    if (byId("speaker").value) form.append("speaker", byId("speaker").value);
    form.append("file", sound, name);
    let answer;
    try {
      answer = await fetch("v1/audio/transcriptions", { method: "POST", body: form, headers: headers(), signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer. Is it still running?");
    }
    if (answer.ok) return answer.json();
    const found = await answer.json().catch(() => null);
    if (answer.status !== 503) throw new Error(found ? found.error.message : `The server answers ${answer.status}.`);
    say("Others are being served first; this one is sent again by itself.");
    await pause(Math.min(30, Number(answer.headers.get("Retry-After")) || 5));
    signal.throwIfAborted();
  }
}

function write(target, pieces) { // [text, flags] one after the other; those with the same doubts are one passage
  let last = null;
  for (const [text, flags] of pieces) {
    const doubts = flags.map((flag) => why[flag] || flag).join(", ");
    if (last && last.doubts === doubts) { last.text.textContent += ` ${text}`; continue; }
    if (last) target.append(" ");
    const node = document.createElement(doubts ? "mark" : "span"), words = document.createElement("span");
    words.textContent = text;
    node.append(words);
    if (doubts) node.append(Object.assign(document.createElement("span"), { className: "why", lang: "en", textContent: doubts }));
    target.append(node);
    last = { doubts, text: words };
  }
}

function add(found, sound, name) {
  const article = byId("result").content.cloneNode(true).firstElementChild, find = (query) => article.querySelector(query);
  const spoken = found.segments.filter((s) => s.text).map((s) => ({ ...s, text: s.text.trim() }));
  const stem = name.replace(/\.[^.]*$/, "");
  find("h2").textContent = `${name}, ${time(found.duration)}`;
  find("audio").src = URL.createObjectURL(sound);
  find("audio").setAttribute("aria-label", `Listen to ${name}`);
  write(find(".english .text"), spoken.length ? spoken.map((s) => [s.text, s.flags]) : [["No speech was heard.", []]]);
  offer(find(".english .buttons"), "the transcript", stem, spoken);
  if (found.translation) addGerman(find, found.translation, spoken, stem);
  const notes = found.segments.filter((s) => s.withheld).map((s) => `No speech was heard from ${time(s.start)} to ${time(s.end)}; what was written there is in the JSON file alone.`);
  if (spoken.some((s) => s.flags.length)) notes.unshift("Marked passages are doubtful: listen to them again.");
  find(".note").textContent = notes.join(" ");
  const json = () => save(`${stem}.json`, JSON.stringify(found, null, 1), "application/json");
  button(find(".all"), "Everything as JSON", `download all about ${name}`, json);
  byId("results").prepend(article);
}

function addGerman(find, translation, spoken, stem) {
  const text = find(".german .text");
  find(".german").hidden = false;
  if (translation.error) {
    text.lang = "en";
    text.textContent = `The translator failed: ${translation.error}`;
    return;
  }
  const doubted = (sentence) => spoken.some((s) => s.flags.length && s.start < sentence.end && s.end > sentence.start);
  write(text, translation.sentences.map((s) => [s.text, doubted(s) ? ["of a doubtful passage"] : []]));
  offer(find(".german .buttons"), "the German", `${stem}.de`, translation.sentences);
}

function button(target, label, spoken, act) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: label });
  made.setAttribute("aria-label", `${label}: ${spoken}`); // begins with what is seen, for those who say it to click it
  made.addEventListener("click", act);
  target.append(made);
}

function offer(target, what, stem, cues) {
  const lines = cues.map((cue) => `${cue.text}\n`).join("");
  if (navigator.clipboard) button(target, "Copy", what, () => navigator.clipboard.writeText(lines).then(() => say("Copied.")));
  button(target, "txt", `download ${what} as text`, () => save(`${stem}.txt`, lines, "text/plain"));
  button(target, "srt", `download ${what} as subtitles`, () => save(`${stem}.srt`, srt(cues), "text/plain"));
}

function srt(cues) { // as writers.to_srt
  const stamp = (s) => new Date(Math.round(1000 * s)).toISOString().slice(11, 23).replace(".", ",");
  return cues.map((cue, i) => `${i + 1}\n${stamp(cue.start)} --> ${stamp(cue.end)}\n${cue.text.replaceAll("-->", "->")}\n\n`).join("");
}

function save(name, text, type) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function offerSpeakers() { // with a key they are not on the page: they are people
  let speakers = facts.speakers;
  if (facts.needs_key && byId("key").value) {
    const answer = await fetch("v1/models", { headers: headers() }).catch(() => null);
    if (answer && answer.ok) speakers = (await answer.json()).data[0].speakers;
    else if (answer) say("That is not the key of this server.", true);
  }
  byId("speaker").replaceChildren(new Option("anybody", ""), ...speakers.map((name) => new Option(name, name)));
  byId("speaker-field").hidden = !speakers.length;
}

async function awaitReady() { // requests may be sent before it is: they wait
  for (let told = ""; ; await pause(3)) {
    const answer = await fetch("health").then((a) => a.json()).catch(() => ({ status: "away" }));
    if (answer.status === "ok") { if (told && !busy && !recorder) say("Ready."); return; }
    const text = answer.status === "starting" ? "The server is getting ready: the first texts take longer. You can record already."
      : answer.status === "failed" ? "The server has a fault; its log says which." : "The server does not answer.";
    if (text !== told && !busy && !recorder) { say(text, answer.status !== "starting"); told = text; }
  }
}

if (!navigator.mediaDevices || !window.MediaRecorder) {
  byId("record").disabled = true;
  byId("hint").prepend(window.isSecureContext ? "This browser cannot record. " : "Recording needs a page opened by https or on this machine itself. ");
}
byId("record").addEventListener("click", record);
byId("choose").addEventListener("click", () => byId("file").click());
byId("cancel").addEventListener("click", cancel);
byId("file").addEventListener("change", () => {
  const files = Array.from(byId("file").files, (file) => [file, file.name]);
  byId("file").value = "";
  if (files.length) send(files);
});
const dragged = (event) => event.dataTransfer && event.dataTransfer.types.includes("Files");
addEventListener("dragover", (event) => { if (dragged(event)) { event.preventDefault(); document.body.classList.add("drop"); } });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("drop"); });
addEventListener("drop", (event) => {
  document.body.classList.remove("drop");
  if (!dragged(event)) return;
  event.preventDefault();
  send(Array.from(event.dataTransfer.files, (file) => [file, file.name]));
});
if (facts.needs_key) {
  byId("access").addEventListener("submit", (event) => event.preventDefault());
  byId("key").addEventListener("change", offerSpeakers);
}
offerSpeakers();
awaitReady();
show();
})();
