//! `hop3 new`: a directory with a service that builds, to begin from. Needs no mesh.
//!
//! The SDK is copied into it from this program, so that neither a network nor Hop3's sources are
//! needed. Nothing that is there is overwritten.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    args::{Lang, New},
    output,
};

macro_rules! sdk {
    ($file:literal) => {
        include_str!(concat!("../../../../agent/sdk/", $file))
    };
}

/// A file of a project: its path, its text, and whether it can be run.
type Template = (&'static str, &'static str, bool);

const RUST: &[Template] = &[
    ("Cargo.toml", sdk!("template/rust/Cargo.toml.in"), false),
    ("src/lib.rs", sdk!("template/rust/lib.rs.in"), false),
    ("build.sh", sdk!("template/rust/build.sh.in"), true),
];

const C: &[Template] = &[
    ("service.c", sdk!("template/c/service.c.in"), false),
    ("build.sh", sdk!("template/c/build.sh.in"), true),
];

const BOTH: &[Template] = &[
    ("service.yaml", sdk!("template/service.yaml.in"), false),
    ("README.md", sdk!("template/README.md.in"), false),
];

/// Copied as they are. A test compares the list with the SDK's directory.
const RUST_SDK: &[(&str, &str)] = &[
    ("Cargo.toml", sdk!("rust/Cargo.toml")),
    ("src/error.rs", sdk!("rust/src/error.rs")),
    ("src/http.rs", sdk!("rust/src/http.rs")),
    ("src/instance.rs", sdk!("rust/src/instance.rs")),
    ("src/json.rs", sdk!("rust/src/json.rs")),
    ("src/kv.rs", sdk!("rust/src/kv.rs")),
    ("src/lib.rs", sdk!("rust/src/lib.rs")),
    ("src/log.rs", sdk!("rust/src/log.rs")),
    ("src/message.rs", sdk!("rust/src/message.rs")),
    ("src/request.rs", sdk!("rust/src/request.rs")),
    ("src/response.rs", sdk!("rust/src/response.rs")),
    ("src/run.rs", sdk!("rust/src/run.rs")),
    ("src/stream.rs", sdk!("rust/src/stream.rs")),
    ("src/sys.rs", sdk!("rust/src/sys.rs")),
    (
        "src/testing/imports.rs",
        sdk!("rust/src/testing/imports.rs"),
    ),
    ("src/testing/mod.rs", sdk!("rust/src/testing/mod.rs")),
    ("src/testing/world.rs", sdk!("rust/src/testing/world.rs")),
    ("src/timer.rs", sdk!("rust/src/timer.rs")),
];

const C_SDK: &[(&str, &str)] = &[("hop3.h", sdk!("c/hop3.h"))];

/// Makes the project, and says what is next.
pub fn run(args: &New) -> Result<()> {
    let name = args.name.as_str();
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(name));
    refuse_full(&dir)?;
    for (path, text, runs) in files(name, args.lang) {
        write(&dir.join(path), &text, runs)?;
    }
    let at = dir.display();
    output::note(&format!("made {at}: see {at}/README.md"));
    output::note(&format!("next: {at}/build.sh"));
    Ok(())
}

fn refuse_full(dir: &Path) -> Result<()> {
    let at = || format!("{}", dir.display());
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            Some(_) => bail!("{} is not empty: choose another with --dir", at()),
            None => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(at),
    }
}

/// Paths, texts, and whether they can be run.
fn files(name: &str, lang: Lang) -> Vec<(String, String, bool)> {
    let (own, sdk, example, test) = match lang {
        Lang::Rust => {
            let test = " `cargo test` runs the\nservice against an in-memory stand-in for Hop3.";
            (RUST, RUST_SDK, "/visits/ann", test)
        }
        Lang::C => (C, C_SDK, "/ann", ""),
    };
    let filled = |text: &str| {
        // A crate's name cannot begin with a digit; a service's can.
        let package = if name.starts_with(|c: char| c.is_ascii_digit()) {
            format!("service-{name}")
        } else {
            name.to_owned()
        };
        text.replace("name = \"{{name}}\"", &format!("name = \"{package}\""))
            .replace("{{crate}}", &package.replace('-', "_"))
            .replace("{{name}}", name)
            .replace("{{example}}", example)
            .replace("{{test}}", test)
    };
    let templates = own.iter().chain(BOTH);
    let templates = templates.map(|(path, text, runs)| ((*path).to_owned(), filled(text), *runs));
    let copies = sdk.iter();
    let copies = copies.map(|(path, text)| (format!("sdk/{path}"), (*text).to_owned(), false));
    let ignored = (
        ".gitignore".to_owned(),
        "/target\n*.wasm\n".to_owned(),
        false,
    );
    templates.chain(copies).chain([ignored]).collect()
}

fn write(path: &Path, text: &str, runs: bool) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let at = || format!("{}", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(at)?;
    }
    fs::write(path, text).with_context(at)?;
    if runs {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(at)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{collections::BTreeSet, process::Command};

    use hop3_common::spec::{Resource, parse_documents};

    use super::*;

    fn make(dir: &Path, lang: Lang) -> Result<()> {
        run(&New {
            name: "my-service".parse().unwrap(),
            lang,
            dir: Some(dir.to_owned()),
        })
    }

    #[test]
    fn manifests_are_manifests_and_nothing_is_left_to_fill_in() {
        for lang in [Lang::Rust, Lang::C] {
            let dir = tempfile::tempdir().unwrap();
            make(dir.path(), lang).unwrap();
            let text = fs::read_to_string(dir.path().join("service.yaml")).unwrap();
            let resources = parse_documents(&text).unwrap();
            assert!(
                matches!(&resources[..], [Resource::Service { name, spec }]
                    if name.as_str() == "my-service" && spec.module == "my-service"),
                "{resources:?}"
            );
            for (path, text, _) in files("my-service", lang) {
                assert!(
                    !text.contains("{{name") && !text.contains("{{crate"),
                    "{path}"
                );
            }
        }
    }

    #[test]
    fn a_directory_with_something_in_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "x").unwrap();
        let refused = make(dir.path(), Lang::Rust).unwrap_err().to_string();
        assert!(refused.contains("not empty"), "{refused}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_whole_sdk_is_copied() {
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../agent/sdk/rust");
        let mut found = BTreeSet::from(["Cargo.toml".to_owned()]);
        let mut dirs = vec![sdk.join("src")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    found.insert(path.strip_prefix(&sdk).unwrap().display().to_string());
                }
            }
        }
        let copied: BTreeSet<String> = RUST_SDK.iter().map(|(path, _)| (*path).into()).collect();
        assert_eq!(copied, found);
    }

    /// Builds what `lang` makes, and gives the module.
    fn built(lang: Lang) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), lang).unwrap();
        let mut build = Command::new(dir.path().join("build.sh"));
        let output = build.env_remove("CARGO_TARGET_DIR").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        fs::read(dir.path().join("my-service.wasm")).unwrap()
    }

    #[test]
    #[ignore = "needs clang and lld"]
    fn c_projects_build() {
        assert!(built(Lang::C).starts_with(b"\0asm"));
    }

    #[test]
    #[ignore = "needs a Rust compiler for wasm32-wasip1, and minutes"]
    fn rust_projects_build() {
        assert!(built(Lang::Rust).starts_with(b"\0asm"));
    }
}
