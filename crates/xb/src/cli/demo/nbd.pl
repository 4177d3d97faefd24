# What the demo's guests without FUSE do with their disk's NBD server, in the language that Debian and Ubuntu always
# have: newstyle negotiation with NBD_OPT_EXPORT_NAME, simple replies (the protocol's doc/proto.md).
#
#   nbd get SOCKET FILE         copies the disk; what is zero is left out
#   nbd put SOCKET FILE         writes what is not as in the file, and has it written through
#   nbd each SOCKET FILE BYTES  writes the file in pieces, each written through, and counts them aloud
use strict;
use Socket;
$| = 1;
my ($what, $path, $file, $piece) = @ARGV;
sub fail { print "demo: failed: NBD: @_\n"; exit 1 }
sub take {
    my ($length, $data) = (shift, '');
    while (length($data) < $length) {
        sysread(NBD, $data, $length - length($data), length($data)) or fail('the server is gone');
    }
    return $data;
}
sub give {
    my $data = shift;
    while (length $data) {
        my $sent = syswrite(NBD, $data) or fail('the server is gone');
        substr($data, 0, $sent) = '';
    }
}
# Type 0 reads, 1 writes, 3 has what was written written through.
sub ask {
    my ($type, $offset, $length, $data) = @_;
    give(pack('N n n Q> Q> N', 0x25609513, 0, $type, 1, $offset, $length) . ($data // ''));
    my (undef, $error) = unpack('N N Q>', take(16));
    fail("error $error at $offset") if $error;
    return $type == 0 ? take($length) : '';
}
socket(NBD, PF_UNIX, SOCK_STREAM, 0) or fail($!);
select(undef, undef, undef, 0.02) until connect(NBD, sockaddr_un($path));
take(18);
give(pack('N a8 N N', 3, 'IHAVEOPT', 1, 0));
my ($size) = unpack('Q> n', take(10));
my $step = $piece // 65536;
if ($what eq 'get') {
    open(my $out, '>', $file) or fail($!);
    for (my $at = 0; $at < $size; $at += $step) {
        my $data = ask(0, $at, $step < $size - $at ? $step : $size - $at);
        next unless $data =~ /[^\0]/;
        sysseek($out, $at, 0);
        syswrite($out, $data) == length($data) or fail("$file: $!");
    }
    truncate($out, $size) or fail($!);
} else {
    open(my $in, '<', $file) or fail($!);
    my $written = 0;
    for (my $at = 0; sysread($in, my $data, $step); $at += length $data) {
        next if $what eq 'put' and $data eq ask(0, $at, length $data);
        ask(1, $at, length $data, $data);
        next if $what eq 'put';
        ask(3, 0, 0);
        $written++;
        print "demo: wrote $written\n";
        select(undef, undef, undef, 0.01);
    }
    ask(3, 0, 0);
}
