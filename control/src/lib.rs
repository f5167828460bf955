//! What should be: REST API, scheduler, lifecycle and migration sagas.
