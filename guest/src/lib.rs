//! Inside the machine: init and agent.
