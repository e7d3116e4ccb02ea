//! Who a program runs as.
//!
//! Looks a local user up before the start, and turns the child into that user between fork and exec. Never changes who this
//! process is.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::prctl::set_no_new_privs;
use nix::unistd::{Gid, Uid, User, chdir, getgrouplist, setgid, setgroups, setuid};

/// What failed in the child: goes home in the upper half of the error number, for that is all that a child can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Taking on uid, gid and groups.
    Become = 1,
    /// Entering the working directory.
    Enter = 2,
}

impl Stage {
    /// To be told to the parent; allocates nothing, for it runs in the child.
    fn failed(self, error: nix::Error) -> io::Error {
        io::Error::from_raw_os_error(((self as i32) << 16) | error as i32)
    }

    /// What the child told: where it failed, unless at exec itself, and why.
    pub(crate) fn of(error: &io::Error) -> (Option<Self>, io::Error) {
        let number = error.raw_os_error().unwrap_or(0);
        let stage = match number >> 16 {
            1 => Some(Self::Become),
            2 => Some(Self::Enter),
            _ => None,
        };
        (stage, io::Error::from_raw_os_error(number & 0xffff))
    }
}

/// Where the programs of somebody else than this process are looked for.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What of our environment such a program gets to see.
const KEPT: [&str; 3] = ["LANG", "LC_ALL", "TZ"];

/// A local user, looked up.
#[derive(Debug)]
pub(crate) struct Identity {
    user: User,
    /// `None` if this process runs as that user already.
    groups: Option<Vec<Gid>>,
}

impl Identity {
    /// Finds a user; an error is a sentence. May ask a directory service, so it blocks.
    pub(crate) fn look_up(name: &str) -> Result<Self, String> {
        let user = match User::from_name(name) {
            Ok(Some(user)) => user,
            Ok(None) => {
                return Err(format!(
                    "there is no local user {name:?}: create it on this machine, or name one that `getent passwd` lists"
                ));
            }
            Err(error) => return Err(format!("the user {name:?} cannot be looked up: {error}")),
        };
        let us = Uid::effective();
        if !us.is_root() {
            if user.uid == us {
                return Ok(Self { user, groups: None });
            }
            return Err(format!(
                "cannot run as {name:?}, because this process has uid {us} and only root may become somebody else: run the agent \
                 as root, or leave the user out"
            ));
        }
        let c_name = CString::new(name).map_err(|_| format!("the user name {name:?} contains a NUL byte"))?;
        let groups = getgrouplist(&c_name, user.gid)
            .map_err(|error| format!("the groups of the user {name:?} cannot be looked up: {error}"))?;
        Ok(Self { user, groups: Some(groups) })
    }

    /// Whether it is another user than this process's.
    pub(crate) fn is_somebody_else(&self) -> bool {
        self.user.uid != Uid::effective()
    }

    /// Makes the child this user, with this working directory, and tells it so in its environment.
    pub(crate) fn apply(self, command: &mut Command, cwd: Option<&Path>) -> Result<(), String> {
        let somebody_else = self.is_somebody_else();
        let Self { user, groups } = self;
        if somebody_else {
            // What root was started with is not for others: only what says how to write and where it is.
            command.env_clear();
            command.env("PATH", PATH);
            let told = KEPT.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
            command.envs(told);
        }
        command.env("HOME", &user.dir);
        command.env("SHELL", &user.shell);
        command.env("USER", &user.name);
        command.env("LOGNAME", &user.name);
        let Some(groups) = groups else {
            cwd.map(|cwd| command.current_dir(cwd));
            return Ok(());
        };
        let cwd = cwd.map(|cwd| CString::new(cwd.as_os_str().as_bytes()));
        let cwd = cwd.transpose().map_err(|_| "the working directory contains a NUL byte".to_owned())?;
        let (uid, gid) = (user.uid, user.gid);
        let become_user = move || {
            setgroups(&groups).map_err(|error| Stage::Become.failed(error))?;
            setgid(gid).map_err(|error| Stage::Become.failed(error))?;
            setuid(uid).map_err(|error| Stage::Become.failed(error))?;
            // What was given up does not come back by a program with the set-user-id bit. A kernel that cannot is no reason not
            // to go on: it has never been able to.
            if somebody_else {
                let _ = set_no_new_privs();
            }
            // As that user, who may see more or less than root does (NFS).
            cwd.as_deref().map_or(Ok(()), chdir).map_err(|error| Stage::Enter.failed(error))
        };
        // SAFETY: after fork the child makes only system calls here, on memory prepared before: no allocation, no lock, no panic.
        // Dropping the closure is the parent's business.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(become_user)
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_survives_the_way_home() {
        let (stage, error) = Stage::of(&Stage::Enter.failed(nix::Error::EACCES));
        assert_eq!((stage, error.kind()), (Some(Stage::Enter), io::ErrorKind::PermissionDenied));
        let (stage, error) = Stage::of(&io::Error::from_raw_os_error(nix::Error::ENOENT as i32));
        assert_eq!((stage, error.kind()), (None, io::ErrorKind::NotFound));
    }
}
