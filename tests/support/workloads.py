"""The programs of tests/integration/test_workloads.py: small repositories, their clients, and code to compile."""

# ruff: noqa: E501 - other languages, as their users write them

from __future__ import annotations

from typing import Final

APT_REPOSITORY: Final = r"""
import gzip, hashlib, os, pathlib, shutil, subprocess, sys
root = pathlib.Path('/srv/apt')
root.mkdir(parents=True, exist_ok=True)
version = sys.argv[1]

def package(name, control, files, scripts):
    work = pathlib.Path('/tmp/build') / name
    shutil.rmtree(work, ignore_errors=True)
    (work / 'DEBIAN').mkdir(parents=True)
    (work / 'DEBIAN/control').write_text(
        f'Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: test\n{control}')
    for script, text in scripts.items():
        (work / 'DEBIAN' / script).write_text(text)
        (work / 'DEBIAN' / script).chmod(0o644 if script == 'conffiles' else 0o755)
    for path, (text, mode) in files.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(text)
        (work / path).chmod(mode)
    subprocess.run(['dpkg-deb', '--build', '--root-owner-group', str(work), str(root)], check=True, stdout=2)

package('greet-lib', '', {'usr/share/greet/lib.sh': (f'say() {{ echo "greet {version} from the library"; }}\n', 0o644)}, {})
package('greet', 'Depends: greet-lib\n',
        {'usr/bin/greet': ('#!/bin/sh\n. /usr/share/greet/lib.sh\nsay\n', 0o755),
         'usr/lib/greet/helper': ('#!/bin/sh\n', 0o4755), 'etc/greet.conf': ('theirs\n', 0o644)},
        {'conffiles': '/etc/greet.conf\n',
         'postinst': '#!/bin/sh\nset -e\nid greeter 2>/dev/null || useradd --system greeter\n'
                     'mkdir -p /var/lib/greet\nchown greeter /var/lib/greet\n',
         'postrm': '#!/bin/sh\nif [ "$1" = purge ]; then userdel greeter; rm -rf /var/lib/greet; fi\n'})
index = ''
for deb in sorted(root.glob('*.deb')):
    data = deb.read_bytes()
    control = subprocess.run(['dpkg-deb', '-f', str(deb)], check=True, capture_output=True, text=True).stdout
    index += f'{control}Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n'
for name, data in (('Packages', index.encode()), ('Packages.gz', gzip.compress(index.encode()))):
    (root / name).write_bytes(data)
    # HTTP tells times in seconds: two indices of one second would be the same to apt (304).
    os.utime(root / name, (10**9 + int(version), 10**9 + int(version)))
"""

APT: Final = r"""
set -e
export DEBIAN_FRONTEND=noninteractive
apt() { apt-get -q -y -o Dir::Etc::sourcelist=/etc/apt/only.list -o Dir::Etc::sourceparts=- "$@" >&2; }
python3 repository.py 1
if [ "$1" = http ]; then
    python3 -m http.server --protocol HTTP/1.1 --bind 127.0.0.1 --directory /srv/apt 8000 >/dev/null 2>&1 &
    for _ in $(seq 100); do curl -s -o /dev/null http://127.0.0.1:8000/ && break; sleep 0.1; done
fi
apt update
apt install greet
echo "== $(greet)"
[ "$(stat -c %U /var/lib/greet)" = greeter ] && echo "== user greeter"
echo "== mode $(stat -c %a /usr/lib/greet/helper)"
echo mine > /etc/greet.conf
python3 repository.py 2
apt update
apt -o Dpkg::Options::=--force-confold dist-upgrade
echo "== $(greet)"
echo "== kept: $(cat /etc/greet.conf)"
apt remove greet
[ ! -e /usr/bin/greet ] && [ -e /etc/greet.conf ] && echo "== removed"
apt purge greet
[ ! -e /etc/greet.conf ] && ! id greeter 2>/dev/null && echo "== purged"
apt install --fix-broken
dpkg --audit
dpkg --verify >&2 || true
"""

PIP_INDEX: Final = r'''
import base64, hashlib, io, pathlib, tarfile, zipfile
root = pathlib.Path('/srv/simple')
for name in ('answer', 'extension'):
    (root / name).mkdir(parents=True, exist_ok=True)

def wheel(name, files):
    out, record = io.BytesIO(), ''
    info = f'{name}-1.0.dist-info'
    files = {**files, f'{info}/METADATA': f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n',
             f'{info}/WHEEL': 'Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n'}
    with zipfile.ZipFile(out, 'w') as archive:
        for path, text in files.items():
            archive.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()
            record += f'{path},sha256={digest},{len(text)}\n'
        archive.writestr(f'{info}/RECORD', record + f'{info}/RECORD,,\n')
    return out.getvalue()

(root / 'answer/answer-1.0-py3-none-any.whl').write_bytes(wheel('answer', {'answer.py': 'VALUE = 42\n'}))
BACKEND = """
import pathlib, subprocess, sysconfig, zipfile
def build_wheel(directory, config_settings=None, metadata_directory=None):
    name = 'extension-1.0-py3-none-any.whl'
    module = '_extension' + sysconfig.get_config_var('EXT_SUFFIX')
    subprocess.run(['gcc', '-shared', '-fPIC', '-I', sysconfig.get_path('include'), '-o', module, 'extension.c'], check=True)
    info = 'extension-1.0.dist-info/'
    with zipfile.ZipFile(directory + '/' + name, 'w') as archive:
        archive.write(module)
        archive.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: extension\\nVersion: 1.0\\nRequires-Dist: answer\\n')
        archive.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: false\\nTag: py3-none-any\\n')
        archive.writestr(info + 'RECORD', '')
    return name
def build_sdist(directory, config_settings=None):
    raise NotImplementedError
"""
SOURCE = """
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_extension", "", -1, methods};
PyMODINIT_FUNC PyInit__extension(void) { return PyModule_Create(&module); }
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "extension"\nversion = "1.0"\n'
with tarfile.open(root / 'extension/extension-1.0.tar.gz', 'w:gz') as archive:
    for name, text in (('backend.py', BACKEND), ('extension.c', SOURCE), ('pyproject.toml', PROJECT),
                       ('PKG-INFO', 'Metadata-Version: 2.1\nName: extension\nVersion: 1.0\n')):
        info = tarfile.TarInfo(f'extension-1.0/{name}')
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text.encode()))
'''

PIP: Final = r"""
set -e
cd /tmp
python3 /srv/index.py
python3 -m http.server --bind 127.0.0.1 --directory /srv 8001 >/dev/null 2>&1 &
for _ in $(seq 100); do curl -s -o /dev/null http://127.0.0.1:8001/ && break; sleep 0.1; done
export PIP_INDEX_URL=http://127.0.0.1:8001/simple PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
pip install extension
python3 -c 'import answer; print("wheel says", answer.VALUE)'
python3 -c 'import _extension; print("extension says", _extension.answer())'
python3 -m venv /tmp/venv && /tmp/venv/bin/pip install -q answer
/tmp/venv/bin/python -c 'import answer; print("in a venv", answer.VALUE)'
pip uninstall -q -y extension answer
python3 -c 'import answer' 2>/dev/null || echo gone
"""

NPM_REGISTRY: Final = r"""
import { createServer } from 'node:http';
import { createHash } from 'node:crypto';
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync, readFileSync } from 'node:fs';
mkdirSync('/srv/p/package', { recursive: true });
const manifest = { name: 'answer', version: '1.0.0', main: 'index.js', bin: { answer: './cli.js' },
                   scripts: { postinstall: "node -e \"require('fs').writeFileSync('hook', '')\"" } };
writeFileSync('/srv/p/package/package.json', JSON.stringify(manifest));
writeFileSync('/srv/p/package/index.js', 'module.exports = 42;');
writeFileSync('/srv/p/package/cli.js', "#!/usr/bin/env node\nconsole.log('binary says', require('./index.js'));");
execFileSync('tar', ['-czf', '/srv/answer.tgz', '-C', '/srv/p', 'package']);
const tarball = readFileSync('/srv/answer.tgz');
const integrity = 'sha512-' + createHash('sha512').update(tarball).digest('base64');
createServer((request, answer) => {
    if (request.url === '/answer') {
        const dist = { tarball: 'http://127.0.0.1:8002/answer.tgz', integrity };
        const versions = { '1.0.0': { ...manifest, hasInstallScript: true, dist } };
        answer.end(JSON.stringify({ name: 'answer', 'dist-tags': { latest: '1.0.0' }, versions }));
    } else if (request.url === '/answer.tgz') {
        answer.end(tarball);
    } else {
        answer.writeHead(404).end('{}');
    }
}).listen(8002, '127.0.0.1');
"""

NPM: Final = r"""
set -e
node /srv/registry.mjs &
for _ in $(seq 100); do curl -s -o /dev/null http://127.0.0.1:8002/answer && break; sleep 0.1; done
export npm_config_registry=http://127.0.0.1:8002 npm_config_audit=false npm_config_fund=false npm_config_update_notifier=false
mkdir a b && cd a && npm init -y >/dev/null && npm install answer >&2
node -p '"required " + require("answer")'
[ -e node_modules/answer/hook ] && echo hook ran
npx --no-install answer
cd ../b && npm init -y >/dev/null && npm install /srv/answer.tgz >&2 && npm ci >&2
node -p '"tarball " + require("answer")'
"""

GIT: Final = r"""
set -e
cd /srv && mkdir git-$$ && cd git-$$
git config --global user.name Someone
git config --global user.email someone@example.com
git config --global init.defaultBranch main
git config --global protocol.file.allow always
git init -q one && cd one
for n in 1 2 3; do seq $((n * 1000)) > f$n; ln -sf f$n link; git add -A; git commit -qm "number $n"; done
git gc -q --aggressive && git fsck --strict >&2
git checkout -q -b side HEAD~1 && echo x > g && git add g && git commit -qm side && git checkout -q main
git worktree add -q ../tree side && git stash list && git diff --stat HEAD~1 >&2
count() { echo "$1 $(git -C $2 rev-list --count main)"; }
cd .. && git clone -q --bare one one.git && git -C one.git update-server-info
git clone -q one.git file && count file file
python3 -m http.server --bind 127.0.0.1 8003 >/dev/null 2>&1 &
git daemon --reuseaddr --listen=127.0.0.1 --port=9418 --base-path=. --export-all --enable=receive-pack >/dev/null 2>&1 &
for port in 8003 9418; do for _ in $(seq 100); do (: > /dev/tcp/127.0.0.1/$port) 2>/dev/null && break; sleep 0.1; done; done
git clone -q http://127.0.0.1:8003/one.git http && count http http
git clone -q git://127.0.0.1/one.git git && count git git
git clone -q --depth 1 git://127.0.0.1/one.git shallow && count shallow shallow
cd git && printf '#!/bin/sh\ntouch hooked\n' > .git/hooks/pre-push && chmod +x .git/hooks/pre-push
echo new > new && git add new && git commit -qm four && git push -q origin main && [ -e hooked ] && cd ..
count pushed one.git
git init -q over && cd over && git submodule --quiet add git://127.0.0.1/one.git sub 2>&1 && git -C sub checkout -q HEAD~1
echo "submodule $(git -C sub rev-list --count HEAD)"
"""
C_PROJECT: Final = {
    "answer.c": "int answer(void) { return 42; }\n",
    "main.c": '#include <stdio.h>\nint answer(void);\nint main(void) { printf("library %d\\n", answer()); }\n',
    "fixed.c": '#include <stdio.h>\nint answer(void);\nint main(void) { printf("static %d\\n", answer()); }\n',
    "many.cc": r"""
#include <atomic>
#include <iostream>
#include <stdexcept>
#include <thread>
#include <vector>
int main()
{
    std::atomic<int> caught{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; i++)
        threads.emplace_back([&] { try { throw std::runtime_error("x"); } catch (std::exception &) { caught++; } });
    for (auto &thread : threads) thread.join();
    std::cout << "caught " << caught << " of 8\n";
}
""",
    "Makefile": (
        "all: main many fixed\n"
        "libanswer.so: answer.c\n\tgcc -O2 -flto -shared -fPIC -o $@ $<\n"
        "main: main.c libanswer.so\n\tgcc -O2 -o $@ main.c -L. -lanswer -Wl,-rpath,'$$ORIGIN'\n"
        "many: many.cc\n\tg++ -O2 -pthread -o $@ $<\n"
        "fixed: fixed.c answer.c\n\tgcc -O2 -static -o $@ $^\n"
    ),
}

OVERFLOW_C: Final = r"""
#include <stdlib.h>
int main(int count, char **words)
{
    char *room = malloc(4);
    room[atoi(words[1])] = 1;
    free(room);
    return 0;
}
"""

DATA: Final = r"""
import io, os, tempfile
import numpy as np, pandas as pd, matplotlib, seaborn, PIL.Image
import matplotlib.pyplot as plt
matrix = np.random.default_rng(0).normal(size=(400, 400))
assert np.allclose(np.linalg.inv(matrix) @ matrix, np.eye(400), atol=1e-6)
assert np.allclose(np.fft.ifft(np.fft.fft(matrix[0])).real, matrix[0])
mapped = np.memmap('/workspace/big.bin', dtype='f8', mode='w+', shape=(1 << 20,))
mapped[:] = 1.0
mapped.flush()
assert np.memmap('/workspace/big.bin', dtype='f8', mode='r').sum() == 1 << 20
frame = pd.DataFrame({'key': list('ab') * 5000, 'value': range(10000)})
frame.to_csv('/workspace/f.csv', index=False)
assert pd.read_csv('/workspace/f.csv').groupby('key').value.mean().to_dict() == {'a': 4999.0, 'b': 5000.0}
figure, axes = plt.subplots()
seaborn.lineplot(data=frame.head(50), x='value', y='value', ax=axes)
figure.savefig('/workspace/plot.png')
assert PIL.Image.open('/workspace/plot.png').size[0] > 100
print('fine')
"""

BUG_C: Final = r"""
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
volatile int total;
int add(int a, int b) { return a + b; }
static void *work(void *unused) { total += add(1, 2); return 0; }
void crash(void) { *(volatile int *)8 = 1; }
void waits(void) { prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY); for (int i = 0; i < 100; i++) usleep(100000); }
int main(int count, char **words)
{
    if (count > 1 && !strcmp(words[1], "crash"))
        crash();
    if (count > 1)
        waits();
    total = add(1, 2);
    pthread_t thread;
    pthread_create(&thread, 0, work, 0);
    pthread_join(thread, 0);
    printf("%d\n", total);
    return 0;
}
"""
