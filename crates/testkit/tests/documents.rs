//! What the documents point at is there.

#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::path::Path;

/// Links to lines of tests name the line on which the test's function stands.
#[test]
fn links_to_tests_lead_to_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut wrong = Vec::new();
    let mut count = 0;
    for document in std::fs::read_dir(root.join("docs")).unwrap().flatten() {
        let path = document.path();
        if path.extension().is_none_or(|end| end != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for link in text.split("../crates/").skip(1) {
            let end = link.find(|sign: char| sign.is_whitespace() || sign == ')').unwrap_or(link.len());
            let (file, line) = link[..end].split_once("#L").unwrap_or((&link[..end], "1"));
            let Ok(source) = std::fs::read_to_string(root.join("crates").join(file)) else {
                wrong.push(format!("{}: {file} is not there", path.display()));
                continue;
            };
            let number: usize = line.parse().unwrap();
            let found = source.lines().nth(number - 1).unwrap_or_default();
            count += 1;
            if number != 1 && !found.contains("fn ") {
                wrong.push(format!("{}: {file}#L{number} is {found:?}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty() && count > 50, "{count} links, of which these are wrong:\n{}", wrong.join("\n"));
}
