#!/bin/sh
# Run by mmdebstrap with the directory of the new system: Debian's cloud kernel without what its package would bring.
# The modules that the machine needs go in, /boot/vmlinuz is copied out by mmdebstrap afterwards.
set -eu
root=$1
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
work="$root/tmp/kernel"
mkdir -p "$work/x"
cd "$work"
package=$(apt-cache depends --important linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
apt-get -qq -o APT::Sandbox::User=root download "$package"
dpkg-deb -x linux-image-*.deb x
version=$(ls x/lib/modules)
modules="$root/usr/lib/modules/$version"
mkdir -p "$modules"
cd "x/lib/modules/$version"
cp --parents -R modules.builtin modules.builtin.modinfo modules.order kernel/arch/x86/kvm kernel/virt/lib \
    kernel/drivers/virtio kernel/drivers/char/virtio_console.ko "$modules/"
cd "$root"
mkdir -p boot
cp "$work/x/boot/vmlinuz-$version" boot/vmlinuz
rm -rf "$work"
chroot "$root" depmod "$version"
# The agent is on the second disk, so that a change of it does not change the image.
cat > "$root/init" <<'INIT'
#!/bin/sh
mount -t devtmpfs dev /dev 2>/dev/null
mount /dev/nvme1n1 /usr/local && exec /usr/bin/python3 /usr/local/lib/kvm-amd/agent.py
echo "kvm-amd: the second disk cannot be mounted" > /dev/console
INIT
chmod 755 "$root/init"
