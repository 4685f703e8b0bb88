//! Keeps the documentation true.
//!
//! - Generated pages and sections are as the code says. `scripts/reference` writes them (it runs
//!   these tests with `HOP3_UPDATE_DOCS=1`).
//! - Every fenced block marked `sh run` succeeds against a real mesh; every command of one marked
//!   `sh fails` does not. Blocks of a page run in order, in one directory.
//! - Links lead somewhere; error codes, commands and configuration fields that pages name exist.

#[path = "docs/generated.rs"]
mod generated;
#[path = "docs/manifests.rs"]
mod manifests;
#[path = "docs/pages.rs"]
mod pages;
#[path = "docs/runner.rs"]
mod runner;

use std::collections::BTreeSet;

use hop3_common::codes::Code;
use pages::Page;
use runner::Runner;

#[test]
fn generated_error_pages_are_current() {
    generated::page("docs/reference/errors.md", &generated::errors());
    generated::section(
        "docs/reference/wire.md",
        "limits",
        &generated::wire_limits(),
    );
}

#[test]
fn generated_command_pages_are_current() {
    generated::page("docs/reference/cli.md", &generated::cli());
    generated::page("docs/reference/daemons.md", &generated::daemons());
}

#[test]
fn generated_api_routes_are_current() {
    let mesh = hop3_tests::Mesh::start(&[]);
    let document = generated::openapi(&mesh);
    generated::section(
        "docs/reference/api.md",
        "routes",
        &generated::routes(&document),
    );
    for (marker, schema, defaults) in manifests::kinds() {
        let table = manifests::table(&document, schema, &defaults);
        generated::section("docs/reference/manifests.md", marker, &table);
    }
}

#[test]
fn quickstart_works() {
    Runner::start().run(&Page::read("docs/quickstart.md"));
}

#[test]
fn enroll_works() {
    Runner::start().run(&Page::read("docs/tasks/enroll.md"));
}

#[test]
fn run_tasks_works() {
    Runner::start().run(&Page::read("docs/tasks/run-tasks.md"));
}

#[test]
fn services_works() {
    Runner::start().run(&Page::read("docs/tasks/services.md"));
}

#[test]
fn move_works() {
    Runner::start().run(&Page::read("docs/tasks/move.md"));
}

#[test]
fn models_works() {
    Runner::start().run(&Page::read("docs/tasks/models.md"));
}

#[test]
fn operate_works() {
    Runner::start().run(&Page::read("docs/tasks/operate.md"));
}

#[test]
fn secure_works() {
    Runner::start().run(&Page::read("docs/tasks/secure.md"));
}

#[test]
fn troubleshoot_works() {
    Runner::start().run(&Page::read("docs/tasks/troubleshoot.md"));
}

/// A page with blocks to run that no test above runs would rot.
#[test]
fn every_page_with_commands_is_run() {
    let here = include_str!("docs.rs");
    for page in pages::all() {
        let named = here.contains(&format!("\"{}\"", page.path));
        assert!(
            page.blocks().is_empty() || named,
            "no test runs the blocks of {}",
            page.path
        );
    }
}

#[test]
fn links_lead_somewhere() {
    let broken: Vec<String> = pages::all().iter().flat_map(Page::broken_links).collect();
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn error_codes_exist() {
    let known: BTreeSet<String> = Code::ALL.iter().map(ToString::to_string).collect();
    for page in pages::all() {
        for code in page.error_codes() {
            assert!(known.contains(&code), "{}: there is no {code}", page.path);
        }
    }
}

#[test]
fn commands_exist() {
    let reference = generated::cli();
    let unknown: Vec<String> = pages::all()
        .iter()
        .flat_map(|page| page.unknown_commands(&reference))
        .collect();
    assert!(
        unknown.is_empty(),
        "not in `hop3 reference`:\n{}",
        unknown.join("\n")
    );
}

#[test]
fn configuration_fields_are_all_documented() {
    let page = Page::read("docs/reference/config.md");
    for (program, heading) in [("hop3-coordinator", "Coordinator"), ("hop3-agent", "Agent")] {
        let documented = page.fields_under(heading);
        let known = generated::known_fields(program);
        assert_eq!(
            documented, known,
            "docs/reference/config.md, under {heading}"
        );
    }
}
