//! What a path depends on besides the directory that it names: every link on
//! its way, and what is at its end.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// Links that the kernel follows on one way (`MAXSYMLINKS`, include/linux/namei.h).
const MOST_LINKS: usize = 40;

/// The directories, each with the name in it, whose change makes an absolute
/// path lead elsewhere or to something else: those of its links, and that of
/// what it leads to. None of the directories has a link on its own way.
pub(super) fn places(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut places = Vec::new();
    let mut at = PathBuf::from("/");
    let mut links = 0;
    let mut ahead: VecDeque<OsString> = names(path).collect();
    while let Some(name) = ahead.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        match std::fs::read_link(at.join(&name)) {
            Ok(target) if links < MOST_LINKS => {
                links += 1;
                if target.is_absolute() {
                    places.push((std::mem::replace(&mut at, PathBuf::from("/")), name));
                } else {
                    places.push((at.clone(), name));
                }
                for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                    ahead.push_front(name);
                }
            }
            _ => at.push(name),
        }
    }
    if let (Some(dir), Some(name)) = (at.parent(), at.file_name()) {
        places.push((dir.to_path_buf(), name.to_owned()));
    }
    places
}

fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_link_on_the_way_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        std::fs::create_dir_all(at("v1/inner")).unwrap();
        std::fs::write(at("v1/inner/a.yaml"), "").unwrap();
        symlink("v1", at("data")).unwrap();
        symlink(at("data/inner"), at("now")).unwrap();
        symlink("../inner/a.yaml", at("v1/inner/b.yaml")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let of = |name: &str| -> Vec<(PathBuf, String)> {
            let places = places(&at(name)).into_iter();
            places
                .map(|(dir, name)| (dir, name.into_string().unwrap()))
                .collect()
        };
        let place = |dir: &str, name: &str| (root.join(dir), name.to_owned());
        let top = |name: &str| (root.clone(), name.to_owned());
        assert_eq!(of("v1"), [top("v1")]);
        assert_eq!(
            of("now/b.yaml"),
            [
                top("now"),
                top("data"),
                place("v1/inner", "b.yaml"),
                place("v1/inner", "a.yaml")
            ]
        );
        assert_eq!(of("missing/a.yaml"), [place("missing", "a.yaml")]);
        assert_eq!(of("loop").len(), MOST_LINKS + 1);
    }
}
