//! The station's pages in a real browser: Chromium, driven over its DevTools protocol by two pipes.
//!
//! Without a Chromium the test says so and ends; with STEWARD_BROWSER=required, as in `.ci/run` where one is installed, that
//! is a failure. STEWARD_SCREENSHOTS=DIR keeps pictures of what it saw.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;
use world::{World, eventually};

const PATIENCE: Duration = Duration::from_secs(40);

/// A browser with one page open.
struct Browser {
    child: Child,
    commands: File,
    answers: mpsc::Receiver<Value>,
    session: String,
    number: u64,
    /// What the page has complained of: errors of scripts, and what the content policy forbids.
    complaints: Vec<String>,
    _dir: TempDir,
}

fn chromium() -> Option<&'static str> {
    let there = |name: &&str| {
        Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(there)
}

impl Browser {
    fn start(program: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (to, from) = (dir.path().join("to"), dir.path().join("from"));
        for pipe in [&to, &from] {
            assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
        }
        let flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
            --disable-component-update --disable-sync --remote-debugging-pipe --window-size=1280,900";
        // The browser reads from file 3 and writes to file 4.
        let line = format!("exec {program} {flags} --user-data-dir=\"$1\" 3<\"$2\" 4>\"$3\"");
        let child = Command::new("sh")
            .args(["-c", &line, "sh"])
            .args([&dir.path().join("data"), &to, &from])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let commands = File::options().write(true).open(&to).unwrap();
        let mut pipe = BufReader::new(File::open(&from).unwrap());
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            let mut text = Vec::new();
            while pipe.read_until(0, &mut text).is_ok_and(|read| read > 0) {
                text.pop();
                if sender.send(serde_json::from_slice(&text).unwrap()).is_err() {
                    break;
                }
                text.clear();
            }
        });
        let mut browser =
            Self { child, commands, answers, session: String::new(), number: 0, complaints: Vec::new(), _dir: dir };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        browser.session = browser.call("Target.attachToTarget", &attach)["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, &json!({}));
        }
        browser
    }

    fn call(&mut self, method: &str, params: &Value) -> Value {
        self.number += 1;
        let mut message = json!({"id": self.number, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self.answers.recv_timeout(left).unwrap_or_else(|_| panic!("no answer to {method}"));
            match answer["method"].as_str() {
                Some("Runtime.exceptionThrown") => self.complaints.push(answer["params"].to_string()),
                // Answers that say what is wrong are no mistake of the page.
                Some("Log.entryAdded") => {
                    let entry = &answer["params"]["entry"];
                    if entry["level"] == "error" && entry["source"] != "network" {
                        self.complaints.push(entry.to_string());
                    }
                }
                _ => {}
            }
            if answer["id"] == self.number {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// What an expression is in the page.
    fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        self.call("Runtime.evaluate", &params)["result"]["value"].clone()
    }

    fn open(&mut self, address: &str) {
        self.call("Page.navigate", &json!({"url": address}));
    }

    /// Waits until an expression is true in the page.
    fn until(&mut self, what: &str, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.value(&format!("document.readyState === 'complete' && Boolean({expression})")) != true {
            assert!(Instant::now() < deadline, "in vain: {what}: {}", self.value("document.body.innerText"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn shows(&mut self, text: &str) {
        self.until(text, &format!("document.body.innerText.includes({})", json!(text)));
    }

    fn key(&mut self, key: &str, code: u32, text: Option<&str>) {
        for kind in ["keyDown", "keyUp"] {
            let mut params = json!({"type": kind, "key": key, "windowsVirtualKeyCode": code});
            if let Some(text) = text.filter(|_| kind == "keyDown") {
                params["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", &params);
        }
    }

    fn enter(&mut self) {
        self.key("Enter", 13, Some("\r"));
    }

    fn type_in(&mut self, text: &str) {
        self.call("Input.insertText", &json!({"text": text}));
    }

    fn picture(&mut self, name: &str) {
        if let Some(dir) = std::env::var_os("STEWARD_SCREENSHOTS") {
            let data = self.call("Page.captureScreenshot", &json!({"captureBeyondViewport": false}))["data"].clone();
            let bytes = BASE64.decode(data.as_str().unwrap().as_bytes()).unwrap();
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(std::path::Path::new(&dir).join(name), bytes).unwrap();
        }
    }

    fn size(&mut self, width: u32, height: u32, dark: bool) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let scheme = if dark { "dark" } else { "light" };
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &feature);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The smallest contrast of a text on its ground in the page (WCAG 2.2, 1.4.3), with the text.
const CONTRAST: &str = r"
(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a];
  };
  const light = ([r, g, b]) => {
    const part = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  let worst = [99, ''];
  for (const element of document.body.querySelectorAll('*')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest('option')) continue;
    let ground = element;
    while (ground && rgb(getComputedStyle(ground).backgroundColor)[3] < 255) ground = ground.parentElement;
    const [one, other] = [light(rgb(getComputedStyle(element).color)), light(ground ? rgb(getComputedStyle(ground).backgroundColor) : [255, 255, 255])];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < worst[0]) worst = [ratio, element.className + ': ' + element.textContent.slice(0, 40)];
  }
  return worst;
})()";

#[test]
fn a_person_sees_the_fleet_and_what_becomes_of_it() {
    let Some(program) = chromium() else {
        assert!(
            std::env::var("STEWARD_BROWSER").is_err(),
            "there is no Chromium, and STEWARD_BROWSER says that one is needed"
        );
        println!("NOT TESTED: there is no Chromium here (apt-get install chromium)");
        return;
    };
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.agent("ship2", &[]);
    world.json(0, &["node", "label", "ship1", "site=oslo"]);
    world.json(0, &["node", "label", "ship2", "site=kiel"]);
    let failed = world.json(3, &["run", "ship1", "--sh", "echo '<b>out</b>'; exit 3"]);
    let job = failed["job"].as_str().unwrap();
    let address = world.ready["http"].as_str().unwrap().to_owned();
    let mut browser = Browser::start(program);
    browser.size(1280, 900, false);

    // The fleet, and what happens to it while one looks, without a word being typed twice.
    browser.open(&address);
    browser.shows("ship2");
    browser.value("document.querySelector('input[name=text]').focus()");
    browser.type_in("ship");
    world.json(0, &["node", "label", "ship2", "fresh=paint"]);
    browser.shows("fresh=paint");
    assert_eq!(browser.value("document.activeElement.value"), "ship", "what is typed stays, and the focus with it");
    browser.type_in("2");
    browser.enter();
    browser.until(
        "filtered",
        "location.search.includes('text=ship2') && document.querySelectorAll('table.nodes tbody tr').length === 1",
    );
    world.end_agent("ship2", 15);
    browser.shows("offline");
    browser.picture("fleet-filtered.png");
    browser.open(&format!("{address}/?by=site&sort=state"));
    browser.shows("By site");
    assert_eq!(browser.value("document.querySelector('table.nodes tbody th').innerText"), "ship2", "worst first");
    browser.picture("fleet.png");
    // A mistake is shown with its place, and can be mended.
    browser.open(&format!("{address}/?where=facts."));
    browser.shows("^");
    assert_eq!(browser.value("document.querySelector('input[name=where]').value"), "facts.");

    // By keyboard alone: from the fleet to a node, to its job, to what its program wrote.
    browser.open(&address);
    browser.until("the table", "document.querySelector('a[href=\"/nodes/ship1\"]')");
    browser.value("document.querySelector('a[href=\"/nodes/ship1\"]').focus()");
    // The focus stays where it is when the part that changes is swapped.
    let seen = browser.value("document.querySelector('.standing time').innerText");
    browser.until("the next look", &format!("document.querySelector('.standing time').innerText !== {seen}"));
    assert_eq!(browser.value("document.activeElement.getAttribute('href')"), "/nodes/ship1");
    browser.enter();
    browser.shows("exit code 3");
    browser.shows("os.id");
    browser.picture("node.png");
    browser.value(&format!("document.querySelector('a[href^=\"/jobs/{job}\"]').focus()"));
    browser.enter();
    browser.shows("<b>out</b>");
    browser.picture("output.png");
    browser.open(&format!("{address}/jobs/{job}"));
    browser.shows("1 failed");
    browser.picture("job.png");

    // Events come while one looks.
    browser.open(&format!("{address}/events"));
    browser.shows("Nothing like this");
    world.json_any(&["event", "emit", "note/nginx", "--message", "GET /index 500"]);
    browser.shows("GET /index 500");
    browser.picture("events.png");

    // On a phone and in the dark nothing is cut off, and everything can be read.
    for (width, dark) in [(1280, false), (1280, true), (375, false), (375, true)] {
        browser.size(width, 800, dark);
        for path in [
            "/",
            "/?by=site",
            "/nodes/ship1",
            "/jobs",
            &format!("/jobs/{job}"),
            &format!("/jobs/{job}/nodes/ship1"),
            "/events",
        ] {
            browser.open(&format!("{address}{path}"));
            browser.until("the page", "document.querySelector('.standing')");
            let wide = browser.value("document.documentElement.scrollWidth - document.documentElement.clientWidth");
            assert_eq!(wide, 0, "{path} is wider than a screen of {width}");
            let worst = browser.value(CONTRAST);
            assert!(worst[0].as_f64().unwrap() >= 4.5, "{path} at {width}, dark {dark}: {worst}");
        }
        browser.open(&address);
        browser.until("the page", "document.querySelector('.standing')");
        browser.picture(&format!("fleet-{width}-{}.png", if dark { "dark" } else { "light" }));
    }
    browser.size(1280, 900, false);

    // With the first token, the page asks for one; a browser logs in and out.
    assert_eq!(browser.complaints, [""; 0], "before anybody was sent away");
    let token = world.json(0, &["station", "token", "add", "anna"]);
    browser.until("the log-in", "location.pathname === '/login'");
    browser.until("the field", "document.activeElement.id === 'token'");
    browser.type_in("wrong");
    browser.enter();
    browser.shows("not known");
    browser.picture("login.png");
    browser.value("document.querySelector('#token').focus()");
    browser.type_in(token["token"].as_str().unwrap());
    browser.enter();
    browser.shows("ship1");
    assert_eq!(browser.value("document.cookie"), "", "no script can read it");
    assert_eq!(browser.value("fetch('/api/v1/nodes').then(answer => answer.status)"), 200);
    browser.value("document.querySelector('form.out button').focus()");
    browser.enter();
    browser.until("the log-in", "location.pathname === '/login'");
    assert_eq!(browser.value("fetch('/api/v1/nodes').then(answer => answer.status)"), 401);

    // Without the station the page says since when it knows nothing.
    world.json(0, &["station", "token", "rm", "anna"]);
    eventually("open again", || world::get(&address, "/api/v1/nodes").contains("ship1"));
    browser.open(&address);
    browser.shows("ship1");
    world.stop_up();
    browser.shows("Connection lost");
}
