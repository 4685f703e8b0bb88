//! The built services of the SDK keep to the guest ABI: what they export and import has the names
//! and types of `agent/sdk/ABI.md`. Skipped, with a message, where no guests are built.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use wasmparser::{ExternalKind, FuncType, Parser, Payload, TypeRef, ValType, Validator};

const SERVICES: [&str; 7] = [
    "echo",
    "counters",
    "chat",
    "anomaly_service",
    "svc_hostile",
    "svc_v1",
    "svc_v2",
];

/// Where guests are; none if they are not built.
fn guests() -> Option<PathBuf> {
    let dir = std::env::var_os("HOP3_GUESTS_DIR").map(PathBuf::from);
    let dir = dir.or_else(|| Some(std::env::home_dir()?.join(".cache/hop3/guests")))?;
    if dir.is_dir() {
        return Some(dir);
    }
    eprintln!(
        "skipped: no guests in {}; run scripts/guests --rust",
        dir.display()
    );
    None
}

/// A function's type in short: `iiI>i` takes two i32 and an i64 and gives an i32.
fn short(ty: &FuncType) -> String {
    let letters = |types: &[ValType]| {
        let letter = |ty: &ValType| match ty {
            ValType::I32 => 'i',
            ValType::I64 => 'I',
            _ => '?',
        };
        types.iter().map(letter).collect::<String>()
    };
    format!("{}>{}", letters(ty.params()), letters(ty.results()))
}

fn import_type(name: &str) -> Option<&'static str> {
    Some(match name {
        "stream_send" => "Iiii>i",
        "reply_status" => "i>i",
        "input" | "reply_header" | "kv_set" | "kv_next" | "publish" => "iiii>i",
        "reply_write" | "kv_delete" => "ii>i",
        "reply_stream" | "now_ms" => ">I",
        "stream_close" => "Ii>i",
        "kv_get" => "iiiii>i",
        "timer_set" => "II>i",
        "timer_clear" => "I>i",
        "call" => "iiiiiiii>I",
        "log" => "iii>",
        _ => return None,
    })
}

fn export_type(name: &str) -> Option<&'static str> {
    Some(match name {
        "_initialize" => ">",
        "hop3_init" | "hop3_request" | "hop3_message" | "hop3_timer" | "hop3_schema" => ">i",
        "hop3_upgrade" => "i>i",
        _ => return None,
    })
}

/// Checks a module; the names of the handlers that it exports.
fn check(name: &str, wasm: &[u8]) -> BTreeSet<String> {
    let valid = Validator::new().validate_all(wasm);
    assert!(valid.is_ok(), "{name}: {:?}", valid.err());
    let (mut types, mut functions) = (Vec::new(), Vec::new());
    let mut exported = BTreeSet::new();
    for payload in Parser::new(0).parse_all(wasm) {
        match payload {
            Ok(Payload::TypeSection(section)) => {
                let all = section.into_iter_err_on_gc_types();
                types = all
                    .map(|ty| short(&ty.unwrap_or_else(|e| panic!("{name}: {e}"))))
                    .collect();
            }
            Ok(Payload::ImportSection(section)) => {
                for import in section.into_imports().flatten() {
                    let TypeRef::Func(ty) = import.ty else {
                        panic!("{name} imports {}, which is no function", import.name)
                    };
                    functions.push(ty);
                    if import.module == "hop3" {
                        let expected = import_type(import.name);
                        let found = types[ty as usize].as_str();
                        assert_eq!(Some(found), expected, "{name}: import {}", import.name);
                    } else {
                        assert_eq!(import.module, "wasi_snapshot_preview1", "{name}");
                    }
                }
            }
            Ok(Payload::FunctionSection(section)) => {
                functions.extend(section.into_iter().flatten());
            }
            Ok(Payload::ExportSection(section)) => {
                for export in section.into_iter().flatten() {
                    exported.insert(export.name.to_owned());
                    if export.kind == ExternalKind::Func {
                        let found = types[functions[export.index as usize] as usize].as_str();
                        let expected = export_type(export.name);
                        assert_eq!(Some(found), expected, "{name}: export {}", export.name);
                    }
                }
            }
            Ok(_) => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }
    exported
}

fn read(dir: &Path, name: &str) -> Vec<u8> {
    let path = dir.join(format!("{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn services_keep_to_the_abi() {
    let Some(dir) = guests() else { return };
    for name in SERVICES {
        let exported = check(name, &read(&dir, name));
        assert!(exported.contains("memory"), "{name}: {exported:?}");
        assert!(exported.contains("hop3_request"), "{name}: {exported:?}");
        let rust = ["chat", "anomaly_service"].contains(&name);
        for handler in ["_initialize", "hop3_init", "hop3_message", "hop3_upgrade"] {
            let expected = rust || (name, handler) == ("svc_v2", "hop3_upgrade");
            assert_eq!(exported.contains(handler), expected, "{name}: {handler}");
        }
    }
}
