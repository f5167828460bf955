//! What is true: records, ids, the store, the change stream, replicas.
