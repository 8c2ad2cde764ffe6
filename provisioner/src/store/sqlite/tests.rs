use tempfile::TempDir;

use super::super::suite::{self, Fixture};
use super::*;

/// A state directory.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::with_prefix("farm-store-").unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Fixture for Place {
    type Store = SqliteStore;
    async fn open(&self) -> SqliteStore {
        open(self.path(), Missing::Make).await.unwrap()
    }
}

macro_rules! keep {
    ($($promise:ident,)*) => {
        mod promises {
            $(
                #[tokio::test]
                async fn $promise() {
                    super::suite::$promise(&super::Place::new()).await;
                }
            )*
        }
    };
}
crate::store_promises!(keep);
