//! The least that hears of exits by the kernel's proc connector, to compare ours with: it asks for
//! exits only (Linux 6.6 and later), reads them and counts them. Never ends by itself.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};

/// `struct nlmsghdr`, `struct cn_msg`, and what this is about: `struct proc_input`, or the beginning
/// of a `struct proc_event`.
const HEADERS: usize = 16 + 20;
const REQUEST: usize = HEADERS + 8;
const EXIT: u32 = 0x8000_0000;
/// Losing less than the default of 208 KiB would.
static BUFFER: libc::c_int = 4 << 20;

fn main() -> Result<()> {
    // SAFETY: no memory is passed.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            libc::NETLINK_CONNECTOR,
        )
    };
    check(fd as isize).context("a netlink socket")?;
    // SAFETY: just opened, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let fd = socket.as_raw_fd();
    // SAFETY: the value outlives the call. A refusal is no harm.
    unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const BUFFER).cast(),
            size_of_val(&BUFFER) as libc::socklen_t,
        )
    };

    // SAFETY: integers only.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = libc::CN_IDX_PROC;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address outlives the call.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
    check(bound as isize).context("joining the proc connector's group: root is needed")?;

    let request = request();
    // SAFETY: the kernel reads as much as it is told.
    let sent = unsafe { libc::send(fd, request.as_ptr().cast(), request.len(), 0) };
    check(sent).context("asking for exits")?;
    listen(fd)
}

/// Asks for exits, and nothing else.
fn request() -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    let mut put = |at: usize, word: u32| request[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    put(0, REQUEST as u32);
    put(4, libc::NLMSG_DONE as u32);
    put(12, std::process::id());
    put(16, libc::CN_IDX_PROC);
    put(20, libc::CN_VAL_PROC);
    put(36, 1); // PROC_CN_MCAST_LISTEN
    put(40, EXIT);
    // `cn_msg.len`: of the `struct proc_input`.
    request[32..34].copy_from_slice(&8_u16.to_ne_bytes());
    request
}

fn listen(fd: libc::c_int) -> Result<()> {
    let mut buffer = [0_u8; 4096];
    let (mut exits, mut overruns) = (0_u64, 0_u64);
    loop {
        // SAFETY: the kernel writes no more than it is told.
        let length = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if let Err(error) = check(length) {
            match error.raw_os_error() {
                Some(libc::ENOBUFS) => overruns += 1,
                Some(libc::EINTR) => {}
                _ => bail!("after {exits} exits and {overruns} overruns: {error}"),
            }
            continue;
        }
        ensure!(
            length as usize >= HEADERS + 4,
            "a message of {length} bytes"
        );
        let what = [36, 37, 38, 39].map(|at| buffer[at]);
        if u32::from_ne_bytes(what) == EXIT {
            exits += 1;
            if exits == 1 {
                println!("listening");
            }
        }
    }
}

fn check(result: isize) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
