module kvmserverguest

go 1.18
