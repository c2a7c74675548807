//! Whether a data folder is where its cluster last ran, was moved, or is a copy.

use std::path::PathBuf;

use super::{description::Description, layout::Layout, postgres::home::is_same_file};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FolderPlace {
    /// `up` last ran in this folder.
    Same,
    /// The folder where `up` last ran is gone, or holds another cluster.
    Moved { from: PathBuf },
    /// The folder where `up` last ran still holds the same cluster.
    Copied { of: PathBuf },
}

impl FolderPlace {
    pub fn of(layout: &Layout, description: &Description) -> anyhow::Result<Self> {
        let (root, recorded) = (layout.root(), &description.root);
        if recorded != root
            && !is_same_file(recorded, root)
            && Description::peek(recorded).is_some_and(|there| there.cluster == description.cluster)
        {
            return Ok(Self::Copied { of: recorded.clone() });
        }
        // The original may have been moved after it was copied. The marker of databases elsewhere names the
        // original's folder.
        if let Some(owner) = description.postgres.home.other_owner(layout)? {
            return Ok(Self::Copied { of: owner });
        }
        Ok(if recorded == root { Self::Same } else { Self::Moved { from: recorded.clone() } })
    }

    /// The folder before the move. Processes that were started before the move have its paths on their command lines.
    /// `None` if another cluster is in that folder now, because such processes then belong to that cluster.
    pub fn former(&self) -> Option<Layout> {
        match self {
            Self::Moved { from } => Some(Layout::at(from.clone())).filter(|former| !former.description().exists()),
            Self::Same | Self::Copied { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::*;

    fn cluster_in(root: &Path) -> (Layout, Description) {
        let layout = Layout::create(root).unwrap();
        let description = Description::for_tests(&layout);
        description.save(&layout).unwrap();
        (layout, description)
    }

    fn place_of(root: &Path) -> FolderPlace {
        let layout = Layout::find(root).unwrap();
        Description::find(&layout).unwrap().unwrap().place
    }

    #[test]
    fn a_folder_is_a_copy_if_the_original_exists_and_moved_otherwise() {
        let parent = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| parent.path().join(name));
        let (layout, _) = cluster_in(&one);
        assert_eq!(place_of(&one), FolderPlace::Same);

        let second = Layout::create(&two).unwrap();
        fs::copy(layout.description(), second.description()).unwrap();
        assert_eq!(place_of(&two), FolderPlace::Copied { of: one.clone() });
        assert!(Description::load(&second).is_err(), "its addresses are those of the original");

        fs::remove_dir_all(&one).unwrap();
        let moved = place_of(&two);
        assert_eq!(moved, FolderPlace::Moved { from: one.clone() });
        assert_eq!(moved.former(), Some(layout));

        // Another cluster in the former folder owns the processes with the former paths.
        cluster_in(&one);
        let moved = place_of(&two);
        assert_eq!((moved.former(), moved), (None, FolderPlace::Moved { from: one }));
    }

    #[test]
    fn a_link_to_the_folder_is_no_copy() {
        let parent = tempfile::tempdir().unwrap();
        let [one, link] = ["one", "link"].map(|name| parent.path().join(name));
        cluster_in(&one);
        symlink(&one, &link).unwrap();
        assert_eq!(place_of(&link), FolderPlace::Same);
        // The folder was moved, and a link replaces it.
        let moved = parent.path().join("moved");
        fs::remove_file(&link).unwrap();
        fs::rename(&one, &moved).unwrap();
        symlink(&moved, &one).unwrap();
        assert_eq!(place_of(&moved), FolderPlace::Moved { from: one });
    }
}
