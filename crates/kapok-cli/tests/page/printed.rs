//! The page on paper: the browser is told to show it as it would print it, over its debugging pipe.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::{COSTS, GRID, HEADLESS, SLOPES, chromium, page, scratch};

const PATIENCE: Duration = Duration::from_secs(120);

/// A4 with margins of a centimetre, at the 96 dots an inch that style sheets count in.
const WIDTH: u32 = 718;
const HEIGHT: u32 = 1047;

/// A browser that takes messages of the Chrome DevTools protocol: JSON, each with a zero byte at its end.
struct Remote {
    browser: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    last: u64,
    session: Option<String>,
}

impl Remote {
    fn start(browser: &str, directory: &Path) -> Remote {
        // The pipe's ends have the numbers 3 and 4.
        let mut browser = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null", browser])
            .args(HEADLESS)
            .arg("--remote-debugging-pipe")
            .arg(format!("--user-data-dir={}", directory.join("profile").display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(directory.join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let to = browser.stdin.take().unwrap();
        let mut pipe = BufReader::new(browser.stdout.take().unwrap());
        let (sender, from) = mpsc::channel();
        // A thread, because a read has no limit of time.
        thread::spawn(move || {
            let mut message = Vec::new();
            while pipe.read_until(0, &mut message).is_ok_and(|count| count > 0) {
                message.pop();
                if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
                message.clear();
            }
        });
        Remote { browser, to, from, last: 0, session: None }
    }

    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.to.write_all(message.to_string().as_bytes()).unwrap();
        self.to.write_all(&[0]).unwrap();
        loop {
            let mut answer = self.from.recv_timeout(PATIENCE).expect("the browser answers");
            // Others are events.
            if answer["id"] == self.last {
                assert_eq!(answer["error"], Value::Null, "{method}: {answer}");
                return answer["result"].take();
            }
        }
    }

    fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true });
        let mut found = self.call("Runtime.evaluate", parameters);
        assert_eq!(found["exceptionDetails"], Value::Null, "{found}");
        found["result"]["value"].take()
    }

    fn open(&mut self, file: &Path) {
        self.session = None;
        let blank = json!({ "url": "about:blank" });
        let target = self.call("Target.createTarget", blank)["targetId"].take();
        let flat = json!({ "targetId": target, "flatten": true });
        let attached = self.call("Target.attachToTarget", flat);
        self.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        // Whoever likes the dark prints on white paper all the same.
        let dark = json!([{ "name": "prefers-color-scheme", "value": "dark" }]);
        self.call("Emulation.setEmulatedMedia", json!({ "media": "print", "features": dark }));
        let size =
            json!({ "width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
        self.call("Page.enable", json!({}));
        self.call("Page.navigate", json!({ "url": format!("file://{}", file.display()) }));
        let begun = std::time::Instant::now();
        while self.evaluate("location.protocol + document.readyState") != "file:complete" {
            assert!(begun.elapsed() < PATIENCE, "the page is never loaded");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let _ = self.browser.kill();
        let _ = self.browser.wait();
    }
}

const PROBE: &str = r#"
(() => {
  const style = element => getComputedStyle(element);
  const parts = colour => colour.match(/[\d.]+/g).map(Number);
  const luminance = colour => {
    const [r, g, b] = parts(colour).slice(0, 3).map(part => {
      part /= 255;
      return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  // On white, because browsers leave backgrounds out.
  const contrast = colour => 1.05 / (luminance(colour) + 0.05);
  const all = [...document.querySelectorAll("body, body *")].filter(element => element.getClientRects().length);
  const words = all.filter(element => [...element.childNodes].some(node =>
    node.nodeType === 3 && node.textContent.trim()) && !["TITLE", "DESC"].includes(element.tagName.toUpperCase()));
  const box = element => element.getBoundingClientRect();
  const size = text => {
    const svg = text.ownerSVGElement;
    const scale = svg ? box(svg).width / svg.viewBox.baseVal.width : 1;
    return parseFloat(style(text).fontSize) * scale;
  };
  const name = element => `${element.tagName} ${element.textContent.trim().slice(0, 40)}`;
  const painted = all.filter(element => {
    const colour = style(element).backgroundColor;
    const [r, g, b, a = 1] = parts(colour);
    return a > 0 && (r < 255 || g < 255 || b < 255);
  });
  const marks = all.filter(element => ["path", "rect", "circle"].includes(element.tagName));
  return {
    print: matchMedia("print").matches,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    width: innerWidth,
    outside: all.filter(element => box(element).right > innerWidth + 1 || box(element).left < -1).map(name),
    clipped: all.filter(element => style(element).overflowX !== "visible" && !element.ownerSVGElement &&
      element.tagName !== "svg" && element.scrollWidth > element.clientWidth + 1).map(name),
    tall: [...document.querySelectorAll("figure")].filter(figure => box(figure).height > innerHeight).map(name),
    torn: [...document.querySelectorAll("figure, tr")].filter(e => style(e).breakInside !== "avoid").map(name),
    painted: painted.map(name),
    smallest: Math.min(...words.map(size)),
    faint: words.filter(element =>
      contrast(element.ownerSVGElement ? style(element).fill : style(element).color) < 4.5).map(name),
    pale: marks.filter(mark => contrast(mark.tagName === "path" ? style(mark).stroke : style(mark).fill) < 3)
      .map(mark => mark.getAttribute("class")),
    words: words.length,
    marks: marks.length,
    controls: all.filter(element => ["SUMMARY"].includes(element.tagName) || element.className === "skip").length,
  };
})()
"#;

#[test]
fn the_page_is_legible_on_paper() {
    let Some(browser) = chromium() else { return };
    let directory = scratch("printed");
    let mut browser = Remote::start(browser, &directory);
    for (name, result) in [("grid", GRID), ("costs", COSTS), ("slopes", SLOPES)] {
        let file = directory.join(format!("{name}.html"));
        fs::write(&file, page(&directory, result)).unwrap();
        browser.open(&file);
        let found = browser.evaluate(PROBE);
        let context = format!("{name}: {found}");
        assert_eq!((&found["print"], &found["dark"]), (&true.into(), &true.into()), "{context}");
        assert_eq!(found["width"], WIDTH, "{context}");
        for nothing in ["outside", "clipped", "tall", "torn", "painted", "faint", "pale"] {
            assert_eq!(found[nothing], json!([]), "{nothing}; {context}");
        }
        // Seven points, which is what footnotes have.
        assert!(found["smallest"].as_f64().unwrap() >= 9.3, "{context}");
        assert!(found["words"].as_u64().unwrap() > 100, "{context}");
        assert!(found["marks"].as_u64().unwrap() > 20, "{context}");
        assert_eq!(found["controls"], 0, "nothing on paper can be pressed; {context}");
        // And it can be printed as it is.
        let paper = json!({ "paperWidth": 8.27, "paperHeight": 11.69 });
        let printed = browser.call("Page.printToPDF", paper);
        let printed = printed["data"].as_str().unwrap();
        // `%PDF-`, in base64.
        assert!(
            printed.starts_with("JVBERi0") && printed.len() > 20_000,
            "{} letters",
            printed.len()
        );
    }
}
