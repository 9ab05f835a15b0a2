//! How the module is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Mesos 1.0 and 1.1 close modules at exit, when threads may still be in them.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // A symbol that nobody defines is an error here, not on somebody's agent.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,defs");
}
