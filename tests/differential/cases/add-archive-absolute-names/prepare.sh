python3 - <<'E'
import tarfile, io
t=tarfile.open('t.tar','w')
def add(name, **k):
    e=tarfile.TarInfo(name); e.size=0
    for a,b in k.items(): setattr(e,a,b)
    if e.isfile(): e.size=1; t.addfile(e, io.BytesIO(b'b'))
    else: t.addfile(e)
add('/abs'); add('./dot'); add('no/parents/here', uid=5, gid=6); add('abslink', type=tarfile.SYMTYPE, linkname='/etc'); add('hard', type=tarfile.LNKTYPE, linkname='no/parents/here', uid=5, gid=6)
add('dup', mode=0o600); add('dup', mode=0o644); add('dev', type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
t.close()
E
