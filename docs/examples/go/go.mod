module storage-example

go 1.18

require kvmserverguest v0.0.0

replace kvmserverguest => ../../../guestlib/go
