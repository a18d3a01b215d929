# SPDX-License-Identifier: MIT
#
# A service in a guest: `perl answer.pl PORT CREDENTIAL`. It reads the credential once, says that it is ready, connects
# to a vsock port of the host, and answers each line from there with the credential's first 16 characters. If nobody
# listens there, it tries again each second. Perl without any module.
my ($port, $name) = @ARGV;
$SIG{PIPE} = 'IGNORE';
open my $file, '<', "$ENV{CREDENTIALS_DIRECTORY}/$name" or die "no credential: $!";
my $says = substr(<$file>, 0, 16) . "\n";
socket my $notify, 1, 2, 0 or die "no socket: $!";
send $notify, 'READY=1', 0, pack 'SZ*', 1, $ENV{NOTIFY_SOCKET} or die "cannot notify: $!";
while (1) {
    socket my $peer, 40, 1, 0 or die "no vsock: $!";    # AF_VSOCK
    if (connect $peer, pack 'SSLLx4', 40, 0, $port, 2) {
        while (sysread $peer, my $question, 64) {
            syswrite $peer, $says or last;
        }
    } else {
        sleep 1;
    }
}
