use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

const OPEN: (&str, &str) = (
    "path_open",
    "(param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)",
);
/// `FD_READ`, `FD_SEEK`, `FD_TELL`.
const READ: u64 = 2 | 4 | 32;
/// The same and `FD_WRITE`.
const WRITE: u64 = READ | 64;
const CREAT: u32 = 1;
const EXCL: u32 = 4;
const TRUNC: u32 = 8;

fn granted(dir: &Path, read_only: bool) -> TaskInput {
    let volume = Volume {
        guest_path: "/data".into(),
        host_dir: dir.to_path_buf(),
        read_only,
    };
    TaskInput {
        grants: Grants {
            volumes: vec![volume],
        },
        ..TaskInput::default()
    }
}

/// WAT that opens `len` bytes of path at 1024 in the first volume and leaves the error.
fn open(len: usize, oflags: u32, rights: u64) -> String {
    format!(
        "(call $path_open (i32.const 3) (i32.const 1) (i32.const 1024) (i32.const {len})
            (i32.const {oflags}) (i64.const {rights}) (i64.const {rights}) (i32.const 0)
            (i32.const 100))"
    )
}

fn open_code(dir: &Path, read_only: bool, path: &str, oflags: u32, rights: u64) -> i32 {
    let body = open(path.len(), oflags, rights);
    code_of(&[OPEN], path, &body, granted(dir, read_only))
}

/// Calls a path function with (fd 3, path, len).
fn path_code(dir: &Path, read_only: bool, function: &str, path: &str) -> i32 {
    let body = format!(
        "(call ${function} (i32.const 3) (i32.const 1024) (i32.const {}))",
        path.len()
    );
    code_of(&[(function, I3)], path, &body, granted(dir, read_only))
}

#[test]
fn nothing_is_granted_by_default() {
    let prestat = "(call $fd_prestat_get (i32.const 3) (i32.const 0))";
    assert_eq!(
        code_of(&[("fd_prestat_get", I2)], "", prestat, TaskInput::default()),
        8
    );
    let body = open(1, 0, READ);
    assert_eq!(code_of(&[OPEN], "x", &body, TaskInput::default()), 8);
}

#[test]
fn a_granted_directory_is_found_under_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let body = "(drop (call $fd_prestat_get (i32.const 3) (i32.const 0)))
        (drop (call $fd_prestat_dir_name (i32.const 3) (i32.const 64) (i32.const 5)))
        (i32.add (i32.load (i32.const 4)) (i32.load8_u (i32.const 65)))";
    let imports = [("fd_prestat_get", I2), ("fd_prestat_dir_name", I3)];
    assert_eq!(
        code_of(&imports, "", body, granted(dir.path(), true)),
        5 + i32::from(b'd')
    );
}

#[test]
fn files_are_written_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    // Creates, writes twice, seeks to 2, reads 4 bytes into 300 and gives the third.
    let body = format!(
        "(drop {open}) (i32.store (i32.const 0) (i32.const 1024))
         (i32.store (i32.const 4) (i32.const 5))
         (drop (call $fd_write (i32.load (i32.const 100)) (i32.const 0) (i32.const 1)
            (i32.const 8)))
         (drop (call $fd_write (i32.load (i32.const 100)) (i32.const 0) (i32.const 1)
            (i32.const 8)))
         (drop (call $fd_seek (i32.load (i32.const 100)) (i64.const -8) (i32.const 2)
            (i32.const 200)))
         (i32.store (i32.const 0) (i32.const 300))
         (drop (call $fd_read (i32.load (i32.const 100)) (i32.const 0) (i32.const 1)
            (i32.const 8)))
         (i32.load8_u (i32.const 302))",
        open = open(5, CREAT | EXCL, WRITE)
    );
    let seek = ("fd_seek", "(param i32 i64 i32 i32) (result i32)");
    let imports = [OPEN, ("fd_write", I4), ("fd_read", I4), seek];
    let code = code_of(&imports, "a.txt", &body, granted(dir.path(), false));
    assert_eq!(fs::read(dir.path().join("a.txt")).unwrap(), b"a.txta.txt");
    assert_eq!(code, i32::from(b't'));
    assert_eq!(
        open_code(dir.path(), false, "a.txt", CREAT | EXCL, WRITE),
        20
    );
    assert_eq!(open_code(dir.path(), false, "none", 0, READ), 44);
    assert_eq!(open_code(dir.path(), false, "a.txt/x", 0, READ), 54);
    assert_eq!(open_code(dir.path(), false, ".", 0, WRITE), 31);
}

#[test]
fn appending_goes_to_the_end_whatever_others_write() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("log"), b"one\n").unwrap();
    let body = format!(
        "(drop (call $path_open (i32.const 3) (i32.const 1) (i32.const 1024) (i32.const 3)
            (i32.const 0) (i64.const {WRITE}) (i64.const 0) (i32.const 1) (i32.const 100)))
         (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 3))
         (drop (call $fd_write (i32.load (i32.const 100)) (i32.const 0) (i32.const 1)
            (i32.const 8)))
         (drop (call $fd_tell (i32.load (i32.const 100)) (i32.const 200)))
         (i32.load (i32.const 200))"
    );
    let imports = [OPEN, ("fd_write", I4), ("fd_tell", I2)];
    assert_eq!(
        code_of(&imports, "log", &body, granted(dir.path(), false)),
        7
    );
    assert_eq!(fs::read(dir.path().join("log")).unwrap(), b"one\nlog");
}

#[test]
fn no_path_leads_out_of_a_volume() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), b"s").unwrap();
    let dir = outside.path().join("inside");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("mine"), b"m").unwrap();
    symlink("../secret", dir.join("up")).unwrap();
    symlink(outside.path().join("secret"), dir.join("absolute")).unwrap();
    symlink("..", dir.join("parent")).unwrap();
    symlink("sub/../../secret", dir.join("winding")).unwrap();
    symlink("mine", dir.join("fine")).unwrap();
    symlink("loop", dir.join("loop")).unwrap();
    let absolute = outside.path().join("secret");
    let escapes = [
        "../secret",
        "..",
        "sub/../../secret",
        "up",
        "absolute",
        "parent/secret",
        "winding",
        "./sub/.././../secret",
        absolute.to_str().unwrap(),
    ];
    for path in escapes {
        for rights in [READ, WRITE] {
            assert_eq!(open_code(&dir, false, path, 0, rights), 76, "{path}");
        }
    }
    assert_eq!(open_code(&dir, false, "fine", 0, READ), 0);
    assert_eq!(open_code(&dir, false, "sub/../mine", 0, READ), 0);
    assert_eq!(open_code(&dir, false, "loop", 0, READ), 32);
    for function in [
        "path_create_directory",
        "path_unlink_file",
        "path_remove_directory",
    ] {
        assert_eq!(path_code(&dir, false, function, "../new"), 76, "{function}");
        assert_eq!(
            path_code(&dir, false, function, "parent/secret"),
            76,
            "{function}"
        );
    }
    assert_eq!(open_code(&dir, false, "../new", CREAT, WRITE), 76);
    assert_eq!(open_code(&dir, false, "parent/new", CREAT, WRITE), 76);
    let names: Vec<_> = fs::read_dir(outside.path()).unwrap().collect();
    assert_eq!(names.len(), 2, "nothing was made outside");
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"s");
}

#[test]
fn symbolic_links_out_of_a_volume_cannot_be_made() {
    let dir = tempfile::tempdir().unwrap();
    // Target at 1024, name `l` at the end of it.
    let link = |target: &str| {
        let body = format!(
            "(call $path_symlink (i32.const 1024) (i32.const {n}) (i32.const 3)
                (i32.const {at}) (i32.const 1))",
            n = target.len(),
            at = 1024 + target.len()
        );
        let ty = "(param i32 i32 i32 i32 i32) (result i32)";
        let data = format!("{target}l");
        code_of(
            &[("path_symlink", ty)],
            &data,
            &body,
            granted(dir.path(), false),
        )
    };
    assert_eq!(link("/etc/passwd"), 76);
    assert_eq!(link("inner"), 0);
    assert_eq!(open_code(dir.path(), false, "l", 0, READ), 44);
}

#[test]
fn a_read_only_volume_is_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"f").unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    let ro = |path: &str, oflags, rights| open_code(dir.path(), true, path, oflags, rights);
    assert_eq!(ro("f", 0, READ), 0);
    assert_eq!(ro("f", CREAT, READ), 0);
    assert_eq!(ro("f", 0, WRITE), 69);
    assert_eq!(ro("f", TRUNC, READ), 69);
    assert_eq!(ro("new", CREAT, READ), 69);
    assert_eq!(ro("new", CREAT | EXCL, WRITE), 69);
    assert_eq!(
        path_code(dir.path(), true, "path_create_directory", "new"),
        69
    );
    assert_eq!(path_code(dir.path(), true, "path_unlink_file", "f"), 69);
    assert_eq!(
        path_code(dir.path(), true, "path_remove_directory", "d"),
        69
    );
    let rename = "(call $path_rename (i32.const 3) (i32.const 1024) (i32.const 1)
        (i32.const 3) (i32.const 1025) (i32.const 1))";
    let six = "(param i32 i32 i32 i32 i32 i32) (result i32)";
    let input = || granted(dir.path(), true);
    assert_eq!(code_of(&[("path_rename", six)], "fg", rename, input()), 69);
    let seven = "(param i32 i32 i32 i32 i32 i32 i32) (result i32)";
    let link = "(call $path_link (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 1)
        (i32.const 3) (i32.const 1025) (i32.const 1))";
    assert_eq!(code_of(&[("path_link", seven)], "fg", link, input()), 69);
    // Through a directory opened inside of it, too: `d` becomes descriptor 4.
    let inner = "(drop (call $path_open (i32.const 3) (i32.const 1) (i32.const 1024) (i32.const 1)
            (i32.const 2) (i64.const -1) (i64.const -1) (i32.const 0) (i32.const 100)))
         (call $path_create_directory (i32.const 4) (i32.const 1024) (i32.const 1))";
    assert_eq!(
        code_of(&[OPEN, ("path_create_directory", I3)], "d", inner, input()),
        69
    );
    let mut names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["d", "f"]);
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"f");
}

#[test]
fn a_file_opened_for_reading_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"f").unwrap();
    let body = format!(
        "(drop {}) (i32.store (i32.const 4) (i32.const 1))
         (call $fd_write (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 8))",
        open(1, 0, READ)
    );
    let imports = [OPEN, ("fd_write", I4)];
    assert_eq!(
        code_of(&imports, "f", &body, granted(dir.path(), false)),
        76
    );
    let read = format!(
        "(drop {}) (i32.store (i32.const 4) (i32.const 1))
         (call $fd_read (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 8))",
        open(1, 0, 64)
    );
    let imports = [OPEN, ("fd_read", I4)];
    assert_eq!(
        code_of(&imports, "f", &read, granted(dir.path(), false)),
        76
    );
    let truncate = format!(
        "(drop {}) (call $fd_filestat_set_size (i32.const 4) (i64.const 0))",
        open(1, 0, READ)
    );
    let set_size = ("fd_filestat_set_size", "(param i32 i64) (result i32)");
    assert_eq!(
        code_of(
            &[OPEN, set_size],
            "f",
            &truncate,
            granted(dir.path(), false)
        ),
        76
    );
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"f");
}

#[test]
fn the_descriptor_table_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"f").unwrap();
    // Opens until refused; exits with 1000 * error + the last descriptor.
    let body = format!(
        "(local $error i32)
         (loop $more (br_if $more (i32.eqz (local.tee $error {}))))
         (i32.add (i32.mul (local.get $error) (i32.const 1000)) (i32.load (i32.const 100)))",
        open(1, 0, READ)
    );
    let code = code_of(&[OPEN], "f", &body, granted(dir.path(), false));
    assert_eq!(code, 33 * 1_000 + 127);
}

#[test]
fn a_pipe_in_a_volume_does_not_hold_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert_eq!(open_code(dir.path(), false, "fifo", 0, READ), 58);
    assert_ne!(open_code(dir.path(), false, "fifo", 0, WRITE), 0);
}

#[test]
fn directories_are_listed_in_order_through_small_buffers() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..20 {
        fs::write(dir.path().join(format!("file-{n:02}")), b"").unwrap();
    }
    // Reads with a 100-byte buffer from the last whole entry's cookie; writes out each name.
    let wat = r#"(module
        (import "wasi_snapshot_preview1" "fd_readdir"
            (func $readdir (param i32 i32 i32 i64 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write"
            (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "_start") (local $cookie i64) (local $at i32) (local $end i32)
            (local $next i32)
            (loop $again
                (if (call $readdir (i32.const 3) (i32.const 1000) (i32.const 100)
                        (local.get $cookie) (i32.const 8)) (then unreachable))
                (local.set $at (i32.const 1000))
                (local.set $end (i32.add (i32.const 1000) (i32.load (i32.const 8))))
                (loop $entry
                    (local.set $next (i32.add (local.get $at) (i32.const 24)))
                    (if (i32.le_u (local.get $next) (local.get $end)) (then
                        (local.set $next (i32.add (local.get $next)
                            (i32.load offset=16 (local.get $at))))
                        (if (i32.le_u (local.get $next) (local.get $end)) (then
                            (local.set $cookie (i64.load (local.get $at)))
                            (i32.store (i32.const 0)
                                (i32.add (local.get $at) (i32.const 24)))
                            (i32.store (i32.const 4)
                                (i32.load offset=16 (local.get $at)))
                            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1)
                                (i32.const 16)))
                            (local.set $at (local.get $next))
                            (br $entry))))))
                (br_if $again (i32.eq (i32.load (i32.const 8)) (i32.const 100))))))"#;
    let out = Arc::new(Captured::new(1_000));
    let mut input = granted(dir.path(), true);
    input.stdout = Arc::clone(&out) as Arc<dyn Output>;
    assert_eq!(run(&load(wat), input).end, End::Exit(0));
    let names: String = (0..20).map(|n| format!("file-{n:02}")).collect();
    assert_eq!(
        String::from_utf8(out.take()).unwrap(),
        format!("...{names}")
    );
}

#[test]
fn metadata_tells_size_and_type_but_not_the_hosts_device() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"12345").unwrap();
    let body = "(drop (call $path_filestat_get (i32.const 3) (i32.const 1) (i32.const 1024)
            (i32.const 1) (i32.const 0)))
        (i32.add (i32.mul (i32.load (i32.const 0)) (i32.const 100)) (i32.add
            (i32.mul (i32.load8_u (i32.const 16)) (i32.const 10)) (i32.load (i32.const 32))))";
    let five = "(param i32 i32 i32 i32 i32) (result i32)";
    let code = code_of(
        &[("path_filestat_get", five)],
        "f",
        body,
        granted(dir.path(), true),
    );
    assert_eq!(code, 100 + 40 + 5);
}

#[test]
fn times_are_set_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, b"").unwrap();
    let body = "(call $path_filestat_set_times (i32.const 3) (i32.const 1) (i32.const 1024)
        (i32.const 1) (i64.const 0) (i64.const 1000000000000000000) (i32.const 4))";
    let ty = "(param i32 i32 i32 i32 i64 i64 i32) (result i32)";
    let imports = [("path_filestat_set_times", ty)];
    assert_eq!(code_of(&imports, "f", body, granted(dir.path(), false)), 0);
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let expected = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    assert_eq!(modified, expected);
    assert_eq!(code_of(&imports, "f", body, granted(dir.path(), true)), 69);
}
