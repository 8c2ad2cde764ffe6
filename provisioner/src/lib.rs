//! The centre of a build farm: from pending jobs to launched instances, exactly once.
