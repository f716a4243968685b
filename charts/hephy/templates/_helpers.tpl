{{- define "hephy.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "hephy.labels" -}}
app.kubernetes.io/name: hephy
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "hephy.selector" -}}
app.kubernetes.io/name: hephy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The address of a node that people reach, as a URL writes it: the first one's external address, else its internal one. */}}
{{- define "hephy.node" -}}
{{- $found := dict "internal" "" "external" "" -}}
{{- range (lookup "v1" "Node" "" "").items -}}
{{- range .status.addresses -}}
{{- if and (eq .type "InternalIP") (not $found.internal) -}}{{- $_ := set $found "internal" .address -}}{{- end -}}
{{- if and (eq .type "ExternalIP") (not $found.external) -}}{{- $_ := set $found "external" .address -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- include "hephy.bracketed" ($found.external | default $found.internal | default "127.0.0.1") -}}
{{- end -}}

{{- define "hephy.bracketed" -}}
{{- if contains ":" . -}}[{{ . }}]{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{/* What the cluster made of a Service that is there already: its load balancer's address, or nothing. Takes (root, Service). */}}
{{- define "hephy.balancer" -}}
{{- $root := index . 0 -}}
{{- $service := lookup "v1" "Service" $root.Release.Namespace (index . 1) | default dict -}}
{{- with dig "status" "loadBalancer" "ingress" list $service -}}
{{- $first := first . -}}
{{- include "hephy.bracketed" ($first.hostname | default $first.ip | default "") -}}
{{- end -}}
{{- end -}}

{{/* A node port: the one in values, else the one that the cluster gave, else nothing. Takes (root, Service, port's name, value). */}}
{{- define "hephy.nodePort" -}}
{{- if index . 3 -}}
{{ index . 3 }}
{{- else -}}
{{- $root := index . 0 -}}
{{- $name := index . 2 -}}
{{- range dig "spec" "ports" list (lookup "v1" "Service" $root.Release.Namespace (index . 1) | default dict) -}}
{{- if and (eq .name $name) .nodePort -}}{{ .nodePort }}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where a Service is reached from outside, HOST:PORT, or nothing while that is not known. Takes (root, Service, port's name, its values, port, nodePort). */}}
{{- define "hephy.outside" -}}
{{- $root := index . 0 -}}
{{- $type := (index . 3).type -}}
{{- $balancer := "" -}}
{{- if eq $type "LoadBalancer" -}}{{- $balancer = include "hephy.balancer" (list $root (index . 1)) -}}{{- end -}}
{{- if $balancer -}}
{{ $balancer }}:{{ index . 4 }}
{{- else if ne $type "ClusterIP" -}}
{{- with include "hephy.nodePort" (list $root (index . 1) (index . 2) (index . 5)) -}}
{{ include "hephy.node" $root }}:{{ . }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What pushers connect to, as far as it is known. */}}
{{- define "hephy.knownSsh" -}}
{{- $service := .Values.ssh.service -}}
{{- .Values.ssh.address | default (include "hephy.outside" (list . (printf "%s-ssh" .Release.Name) "ssh" $service $service.port $service.nodePort)) -}}
{{- end -}}

{{- define "hephy.sshAddress" -}}
{{- $known := include "hephy.knownSsh" . -}}
{{- if $known -}}
{{ $known }}
{{- else if eq .Values.ssh.service.type "NodePort" -}}
{{- fail "the node port for SSH is the cluster's choice, and known only when it is there: set ssh.address to HOST:PORT, or ssh.service.nodePort" -}}
{{- else -}}
{{ .Release.Name }}-ssh.{{ .Release.Namespace }}.svc:{{ .Values.ssh.service.port }}
{{- end -}}
{{- end -}}

{{- define "hephy.domain" -}}
{{ .Values.domain | default "hephy.local" }}
{{- end -}}

{{/* What leads to the apps: exactly one of ingress, httpRoute, router, none. */}}
{{- define "hephy.exposure" -}}
{{- if and .Values.ingress.enabled .Values.httpRoute.enabled -}}
{{- fail "ingress.enabled and httpRoute.enabled: the apps are reached by one of them" -}}
{{- end -}}
{{- $kind := ternary "router" "none" .Values.router.enabled -}}
{{- if .Values.ingress.enabled -}}{{- $kind = "ingress" -}}{{- end -}}
{{- if .Values.httpRoute.enabled -}}
{{- $kind = "httpRoute" -}}
{{- if not .Values.httpRoute.gateway -}}{{- fail "httpRoute.enabled needs httpRoute.gateway, the name of a Gateway" -}}{{- end -}}
{{- end -}}
{{- if and (ne $kind "router") (not .Values.domain) -}}
{{- fail "without hephy's router apps are reached by name: set domain" -}}
{{- end -}}
{{- $kind -}}
{{- end -}}

{{/* Whether the apps answer by https. */}}
{{- define "hephy.appsTls" -}}
{{- $kind := include "hephy.exposure" . -}}
{{- if or (and (eq $kind "ingress") .Values.ingress.tlsSecret) (and (eq $kind "httpRoute") .Values.httpRoute.tls) (and (eq $kind "router") .Values.router.tlsSecret .Values.domain) -}}
true
{{- end -}}
{{- end -}}

{{/* The flags that say where a push ends. */}}
{{- define "hephy.appsFlags" -}}
{{- $kind := include "hephy.exposure" . -}}
{{- $tls := include "hephy.appsTls" . -}}
{{- $service := .Values.router.service -}}
{{- $name := printf "%s-router" .Release.Name -}}
{{- if not .Values.domain -}}
{{- $known := .Values.router.address | default (include "hephy.outside" (list . $name "http" $service $service.port $service.nodePort)) -}}
{{- if and (not $known) (eq $service.type "NodePort") -}}
{{- fail "the router's node port is the cluster's choice, and known only when it is there: set router.address to HOST:PORT, router.service.nodePort, or domain" -}}
{{- end -}}
- {{ printf "--apps-url=http://%s/" ($known | default (printf "%s.%s.svc:%v" $name .Release.Namespace $service.port)) | quote }}
{{- else if eq $kind "router" -}}
{{- $port := ternary $service.httpsPort $service.port (eq $tls "true") -}}
{{- if eq $service.type "NodePort" -}}
{{- $wanted := ternary $service.httpsNodePort $service.nodePort (eq $tls "true") -}}
{{- $port = include "hephy.nodePort" (list . $name (ternary "https" "http" (eq $tls "true")) $wanted) -}}
{{- if not $port -}}
{{- fail "the router's node port is the cluster's choice, and known only when it is there: set router.service.nodePort, and httpsNodePort with a tlsSecret" -}}
{{- end -}}
{{- end -}}
- {{ printf "--apps-port=%v" $port | quote }}
{{- end -}}
{{- if $tls }}
- "--apps-tls"
{{- end -}}
{{- if eq $kind "ingress" }}
- "--ingress"
{{- with .Values.ingress.className }}
- {{ printf "--ingress-class=%s" . | quote }}
{{- end }}
{{- range $key, $value := .Values.ingress.annotations }}
- {{ printf "--ingress-annotation=%s=%s" $key $value | quote }}
{{- end }}
{{- with .Values.ingress.tlsSecret }}
- {{ printf "--ingress-tls-secret=%s" . | quote }}
{{- end }}
{{- else if eq $kind "httpRoute" }}
- {{ printf "--gateway=%s" .Values.httpRoute.gateway | quote }}
{{- with .Values.httpRoute.gatewayNamespace }}
- {{ printf "--gateway-namespace=%s" . | quote }}
{{- end }}
{{- with .Values.httpRoute.section }}
- {{ printf "--gateway-section=%s" . | quote }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Whether build pods have user namespaces of their own. */}}
{{- define "hephy.ownUsers" -}}
{{- if eq (toString .Values.build.hostUsers) "false" -}}true{{- end -}}
{{- end -}}

{{/* The Pod Security level of the builds: SYS_ADMIN, in a pod's own user namespace too, is beyond baseline. */}}
{{- define "hephy.buildsLevel" -}}
{{- $level := .Values.namespaces.podSecurity.builds -}}
{{- if and (include "hephy.ownUsers" .) $level (ne $level "privileged") -}}
{{- fail (printf "build.hostUsers=false gives build pods SYS_ADMIN in a user namespace of their own, which namespaces.podSecurity.builds=%s refuses: leave it empty" $level) -}}
{{- end -}}
{{- $level | default (ternary "privileged" "baseline" (eq (include "hephy.ownUsers" .) "true")) -}}
{{- end -}}

{{/* Values that cannot be together; rendered once, by namespaces.yaml. */}}
{{- define "hephy.checked" -}}
{{- $namespaces := list .Release.Namespace .Values.namespaces.builds .Values.namespaces.apps -}}
{{- if ne (len (uniq $namespaces)) 3 -}}
{{- fail (printf "hephy, its builds and its apps have a namespace each; these are %s: set namespaces.builds and namespaces.apps" (join ", " $namespaces)) -}}
{{- end -}}
{{- if contains "PRIVATE KEY" .Values.adminKeys -}}
{{- fail "adminKeys has a private key, which must never leave your machine: name the file that ends in .pub" -}}
{{- end -}}
{{- if and .Values.tracing.headersSecret (not .Values.tracing.otlpEndpoint) -}}
{{- fail "tracing.headersSecret is sent to a collector: set tracing.otlpEndpoint" -}}
{{- end -}}
{{- if and (include "hephy.embedded" .) (gt (int .Values.replicas) 1) -}}
{{- fail "replicas > 1 needs a registry that all of them reach: set registry.url" -}}
{{- end -}}
{{- if and .Values.registry.identity (or (include "hephy.embedded" .) .Values.registry.secret) -}}
{{- fail "registry.identity is for a registry of a cloud, without a Secret: set registry.url, and leave registry.secret empty" -}}
{{- end -}}
{{- if and .Values.router.tlsSecret (eq (int .Values.router.service.port) (int .Values.router.service.httpsPort)) -}}
{{- fail "router.service.port and router.service.httpsPort are the same: HTTP and https need a port each" -}}
{{- end -}}
{{- end -}}

{{/* The ConfigMap with the certificates that are trusted beside the usual ones, and its entry, as JSON; or nothing. */}}
{{- define "hephy.trusted" -}}
{{- $given := .Values.build.caBundleConfigMap | default dict -}}
{{- if and .Values.build.caBundle $given.name -}}
{{- fail "build.caBundle and build.caBundleConfigMap.name: the certificates are in one of them" -}}
{{- end -}}
{{- if .Values.build.caBundle -}}
{{- if not (contains "-----BEGIN " .Values.build.caBundle) -}}
{{- fail "build.caBundle has no certificate in PEM: --set-file build.caBundle=FILE gives it a file's content" -}}
{{- end -}}
{{- dict "configMap" (printf "%s-ca-bundle" .Release.Name) "key" "ca.crt" | toJson -}}
{{- else if $given.name -}}
{{- dict "configMap" $given.name "key" $given.key | toJson -}}
{{- end -}}
{{- end -}}

{{- define "hephy.embedded" -}}
{{- if not .Values.registry.url -}}true{{- end -}}
{{- end -}}

{{/* What kubelets call the registry. */}}
{{- define "hephy.pullHost" -}}
{{- $embedded := .Values.registry.embedded -}}
{{- if .Values.registry.url -}}
{{ .Values.registry.url }}
{{- else if $embedded.pullHost -}}
{{- if $embedded.loopback -}}{{- fail "registry.embedded.loopback is 127.0.0.1 for kubelets: leave registry.embedded.pullHost empty" -}}{{- end -}}
{{ $embedded.pullHost }}
{{- else -}}
{{- $port := include "hephy.nodePort" (list . (printf "%s-registry" .Release.Name) "registry" $embedded.nodePort) -}}
{{- if or (not $port) (and $embedded.loopback (not $embedded.nodePort)) -}}
{{- fail "kubelets pull from 127.0.0.1 at a port that has to be known: set registry.embedded.nodePort, or registry.embedded.pullHost" -}}
{{- end -}}
127.0.0.1:{{ $port }}
{{- end -}}
{{- end -}}

{{/* What builds never reach, by family: what is blocked by values, and the API server where it is outside of that. */}}
{{- define "hephy.blocked" -}}
{{- $v4 := list -}}
{{- $v6 := list -}}
{{- range .Values.networkPolicy.blocked -}}
{{- if contains ":" . -}}{{- $v6 = append $v6 . -}}{{- else -}}{{- $v4 = append $v4 . -}}{{- end -}}
{{- end -}}
{{- range (lookup "discovery.k8s.io/v1" "EndpointSlice" "default" "kubernetes" | default dict).endpoints -}}
{{- range .addresses -}}
{{- if contains ":" . -}}{{- $v6 = append $v6 (printf "%s/128" .) -}}{{- else -}}{{- $v4 = append $v4 (printf "%s/32" .) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- dict "v4" (uniq $v4) "v6" (uniq $v6) | toJson -}}
{{- end -}}

{{- define "hephy.logging" -}}
- name: HEPHY_LOG
  value: {{ .Values.server.logLevel | quote }}
- name: HEPHY_LOG_FORMAT
  value: {{ .Values.logFormat | quote }}
{{- end -}}

{{- define "hephy.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "hephy.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}
