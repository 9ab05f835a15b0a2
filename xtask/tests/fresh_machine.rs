//! A machine that cannot build BPF programs yet must be able to build setup.

use std::process::Command;

#[test]
fn xtask_depends_on_nothing_that_setup_has_to_install_first() {
    let output = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["tree", "--package", "xtask", "--edges", "normal,build"])
        .args(["--prefix", "none", "--offline"])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{output:?}");
    let tree = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    assert!(tree.starts_with("xtask "), "{tree}");
    for package in ["cleanup-userspace", "cleanup-ebpf", "aya-build"] {
        let found = tree
            .lines()
            .any(|line| line.split(' ').next() == Some(package));
        assert!(!found, "xtask must not depend on {package}:\n{tree}");
    }
}
