module kvmserver.example/hello

go 1.19
