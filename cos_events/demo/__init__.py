"""What `cos-events demo` adds to COS's own workers: an application with trouble to show."""
